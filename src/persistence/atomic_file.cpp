#include "persistence/atomic_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <stdexcept>

#include "headkit/core/error.h"

namespace headkit {
namespace {

// Linux cuts larger writes short by itself.
constexpr size_t kChunk = size_t{1} << 24;

constexpr char kPrefix[] = ".headkit-";
constexpr char kSuffix[] = ".tmp";

std::string unique_name() {
  static std::atomic<uint64_t> counter{0};
  return kPrefix + std::to_string(::getpid()) + "-" + std::to_string(counter++) + kSuffix;
}

}  // namespace

AtomicFile::AtomicFile(const char* operation, const std::string& folder)
    : operation_(operation), folder_(folder), path_(folder + "/" + unique_name()) {
  file_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (file_ < 0) {
    const int error = errno;
    path_.clear();
    fail("creating a file", error);
  }
}

AtomicFile::~AtomicFile() {
  if (file_ >= 0) ::close(file_);
  if (!path_.empty()) ::unlink(path_.c_str());
}

void AtomicFile::fail(const char* doing, int error) const {
  const char* advice = error == ENOSPC || error == EDQUOT || error == EFBIG
                           ? "; free some space or choose another folder. Nothing was changed"
                           : "; nothing was changed";
  throw std::runtime_error(error_message(operation_, "a writable folder", "'", folder_, "', where ",
                                         doing, " failed: ", std::strerror(error), advice));
}

void AtomicFile::write(const void* data, size_t size) {
  const char* next = static_cast<const char*>(data);
  hash_.update(data, size);
  while (size > 0) {
    const ssize_t written = ::write(file_, next, size < kChunk ? size : kChunk);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail("writing", errno);
    next += written;
    size -= static_cast<size_t>(written);
  }
}

std::string AtomicFile::finish() {
  if (::fsync(file_) != 0) fail("flushing", errno);
  const int closed = ::close(file_);
  file_ = -1;
  if (closed != 0) fail("closing", errno);
  return hash_.hex();
}

void AtomicFile::commit(const std::string& name) {
  const std::string target = folder_ + "/" + name;
  if (std::rename(path_.c_str(), target.c_str()) != 0) fail("renaming", errno);
  path_.clear();
  const int folder = ::open(folder_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder >= 0) {
    // Some file systems cannot flush a folder; the rename has happened either way.
    (void)::fsync(folder);
    ::close(folder);
  }
}

bool AtomicFile::is_temporary(const std::string& name) {
  return name.rfind(kPrefix, 0) == 0 && name.size() > sizeof(kPrefix) + sizeof(kSuffix) &&
         name.compare(name.size() - sizeof(kSuffix) + 1, std::string::npos, kSuffix) == 0;
}

}  // namespace headkit
