#include "headkit/distributed/walk_journal.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string_view>

#include "core/sha256.h"
#include "headkit/core/error.h"

namespace headkit {
namespace {

constexpr char kName[] = "journal";
constexpr std::string_view kFirstLine = "headkit journal 1\n";
constexpr int64_t kDigest = 64;  // hexadecimal digits
constexpr int64_t kHead = 3 * sizeof(int64_t);

// Before the bytes of each entry.
struct EntryHead {
  int64_t walk = 0, batch = 0, length = 0;
};
static_assert(sizeof(EntryHead) == kHead);

[[noreturn]] void fail(const std::string& path, const char* doing) {
  throw std::runtime_error(error_message(kName, "a file to read and write", "'", path, "', where ",
                                         doing, " failed: ", std::strerror(errno)));
}

// Up to `count` bytes from `offset`; fewer at the end.
std::string read_at(int file, const std::string& path, int64_t offset, int64_t count) {
  std::string bytes(static_cast<size_t>(count), '\0');
  int64_t got = 0;
  while (got < count) {
    const ssize_t more =
        ::pread(file, bytes.data() + got, static_cast<size_t>(count - got), offset + got);
    if (more < 0 && errno == EINTR) continue;
    if (more < 0) fail(path, "reading");
    if (more == 0) break;
    got += more;
  }
  bytes.resize(static_cast<size_t>(got));
  return bytes;
}

std::string header_of(const std::string& identity) {
  return std::string(kFirstLine) + sha256_hex(identity) + "\n";
}

std::string digest_of(const EntryHead& head, std::string_view bytes) {
  Sha256 sum;
  sum.update(&head, sizeof(head));
  sum.update(bytes);
  return sum.hex();
}

}  // namespace

WalkJournal::WalkJournal(const std::string& path, const std::string& identity) : path_(path) {
  file_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (file_ < 0) fail(path, "opening");
  try {
    if (::flock(file_, LOCK_EX | LOCK_NB) != 0) {
      throw std::runtime_error(error_message(kName, "a journal of this process alone", "'", path,
                                             "', which another process writes"));
    }
    find_entries(identity);
    if (::ftruncate(file_, end_) != 0) fail(path, "cutting off half an entry");
  } catch (...) {
    ::close(file_);
    throw;
  }
}

WalkJournal::~WalkJournal() { ::close(file_); }

void WalkJournal::find_entries(const std::string& identity) {
  struct stat status {};
  if (::fstat(file_, &status) != 0) fail(path_, "reading its size");
  const std::string header = header_of(identity);
  const auto length = static_cast<int64_t>(header.size());
  const std::string there = read_at(file_, path_, 0, std::min<int64_t>(length, status.st_size));
  if (header.compare(0, there.size(), there) != 0) {
    const bool journal = there.compare(0, kFirstLine.size(), kFirstLine) == 0;
    throw std::invalid_argument(error_message(
        kName, journal ? "the journal of this job" : "a journal, or no file",
        journal ? "that of another model, other data or other settings: '" : "'", path_, "'"));
  }
  if (static_cast<int64_t>(there.size()) < length) {
    if (::pwrite(file_, header.data(), header.size(), 0) != static_cast<ssize_t>(length)) {
      fail(path_, "writing");
    }
    end_ = length;
    return;
  }
  for (end_ = length;;) {
    const std::string first = read_at(file_, path_, end_, kHead);
    if (static_cast<int64_t>(first.size()) < kHead) return;
    EntryHead head;
    std::memcpy(&head, first.data(), sizeof(head));
    const int64_t left = status.st_size - end_ - kHead - kDigest;
    if (head.length < 0 || head.length > left) return;
    const int64_t offset = end_ + kHead;
    const std::string bytes = read_at(file_, path_, offset, head.length + kDigest);
    const std::string_view content(bytes.data(), static_cast<size_t>(head.length));
    if (bytes.compare(static_cast<size_t>(head.length), kDigest, digest_of(head, content)) != 0) {
      return;
    }
    places_[{head.walk, head.batch}] = {offset, head.length};
    end_ = offset + head.length + kDigest;
  }
}

std::vector<int64_t> WalkJournal::batches(int64_t walk) const {
  std::vector<int64_t> found;
  for (auto each = places_.lower_bound({walk, 0}); each != places_.end(); ++each) {
    if (each->first.first != walk) break;
    found.push_back(each->first.second);
  }
  return found;
}

std::string WalkJournal::read(int64_t walk, int64_t batch) const {
  const Place& place = places_.at({walk, batch});
  return read_at(file_, path_, place.offset, place.length);
}

void WalkJournal::add(int64_t walk, int64_t batch, const std::string& bytes) {
  const EntryHead head{walk, batch, static_cast<int64_t>(bytes.size())};
  std::string entry(reinterpret_cast<const char*>(&head), sizeof(head));
  entry += bytes;
  entry += digest_of(head, bytes);
  int64_t done = 0;
  const auto length = static_cast<int64_t>(entry.size());
  while (done < length) {
    const ssize_t more =
        ::pwrite(file_, entry.data() + done, static_cast<size_t>(length - done), end_ + done);
    if (more < 0 && errno == EINTR) continue;
    if (more < 0) fail(path_, "writing");
    done += more;
  }
  places_[{walk, batch}] = {end_ + kHead, head.length};
  end_ += length;
}

}  // namespace headkit
