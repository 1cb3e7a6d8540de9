#pragma once

#include <cstddef>
#include <string>

#include "core/sha256.h"

namespace headkit {

/// A file that appears under its name whole or not at all. Written beside its target, then flushed
/// and renamed by `commit`; dropped by the destructor otherwise.
class AtomicFile {
 public:
  /// Throws std::runtime_error if no file can be made in `folder`.
  AtomicFile(const char* operation, const std::string& folder);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(const void* data, size_t size);
  /// Flushes to disk and returns the SHA-256 of what was written; nothing may be written after.
  std::string finish();
  /// Renames to `name` in the folder, over an older file, and flushes the folder.
  void commit(const std::string& name);

  /// True for names that a killed writer may have left.
  static bool is_temporary(const std::string& name);

 private:
  [[noreturn]] void fail(const char* doing, int error) const;

  const char* operation_;
  std::string folder_;
  std::string path_;
  int file_ = -1;
  Sha256 hash_;
};

}  // namespace headkit
