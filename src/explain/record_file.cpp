#include "headkit/explain/record_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

#include "headkit/core/error.h"

namespace headkit {
namespace {

constexpr auto kOperation = "record_file";
constexpr off_t kChunk = 4096;

[[noreturn]] void fail(const std::string& path, const char* doing) {
  throw std::runtime_error(error_message(kOperation, "a file to append to", "'", path, "', where ",
                                         doing, " failed: ", std::strerror(errno)));
}

// Where the last whole line ends.
off_t whole_lines(int file, const std::string& path) {
  off_t end = ::lseek(file, 0, SEEK_END);
  if (end < 0) fail(path, "seeking");
  std::vector<char> chunk(kChunk);
  while (end > 0) {
    const off_t start = std::max<off_t>(0, end - kChunk);
    const ssize_t got = ::pread(file, chunk.data(), static_cast<size_t>(end - start), start);
    if (got != end - start) fail(path, "reading");
    for (off_t i = got; i > 0; --i) {
      if (chunk[static_cast<size_t>(i - 1)] == '\n') return start + i;
    }
    end = start;
  }
  return 0;
}

}  // namespace

RecordFile::RecordFile(const std::string& path) : path_(path) {
  file_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (file_ < 0) fail(path, "opening");
  struct stat status {};
  if (::fstat(file_, &status) == 0 && S_ISREG(status.st_mode)) {
    try {
      if (::ftruncate(file_, whole_lines(file_, path)) != 0) fail(path, "removing half a line");
    } catch (...) {
      ::close(file_);
      throw;
    }
  }
}

RecordFile::~RecordFile() { ::close(file_); }

void RecordFile::write(const std::string& lines) {
  if (lines.empty()) return;
  HEADKIT_CHECK(lines.back() == '\n', kOperation, "lines that end with a newline",
                lines.substr(lines.rfind('\n') == std::string::npos ? 0 : lines.rfind('\n') + 1));
  const std::lock_guard lock(mutex_);
  for (size_t first = 0; first < lines.size();) {
    const size_t next = lines.find('\n', first) + 1;
    while (first < next) {
      const ssize_t count = ::write(file_, lines.data() + first, next - first);
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) fail(path_, "writing");
      first += static_cast<size_t>(count);
    }
    ++written_;
  }
}

int64_t RecordFile::written() const {
  const std::lock_guard lock(mutex_);
  return written_;
}

}  // namespace headkit
