#include "persistence/text_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "headkit/core/error.h"

namespace headkit {

std::string read_text_file(const std::string& path, const std::string& expected, size_t most) {
  // O_NONBLOCK: opening a pipe by mistake must not wait for a writer.
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  HEADKIT_CHECK_RUNTIME(file >= 0, "load", expected, "'", path, "': ", std::strerror(errno));
  struct stat status {};
  const bool regular = ::fstat(file, &status) == 0 && S_ISREG(status.st_mode);
  const size_t size = regular ? static_cast<size_t>(status.st_size) : 0;
  std::string text;
  bool complete = regular && size <= most;
  if (complete) {
    text.resize(size);
    size_t done = 0;
    while (done < size) {
      const ssize_t got = ::read(file, text.data() + done, size - done);
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0) break;
      done += static_cast<size_t>(got);
    }
    complete = done == size;
  }
  ::close(file);
  HEADKIT_CHECK_RUNTIME(complete, "load",
                        expected + " of " + std::to_string(most) + " bytes at most", "'", path,
                        "' with ", size, " bytes", regular ? "" : ", not a regular file");
  return text;
}

}  // namespace headkit
