#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace headkit {

/// Tensors by name, in the order in which they were given or lie in the file.
using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;

/// One tensor of a safetensors file.
struct SafetensorsEntry {
  std::string name;
  at::ScalarType dtype = at::kFloat;
  std::vector<int64_t> shape;
  size_t begin = 0;  ///< first byte, counted from the start of the file
  size_t end = 0;    ///< one past the last byte
};

/// The table of contents of a safetensors file: entries in the order of their bytes.
struct SafetensorsHeader {
  std::vector<SafetensorsEntry> entries;
  std::map<std::string, std::string> metadata;
};

/// Reads the table of contents of a whole file held in memory and proves it sound: lengths and
/// offsets inside the file, shapes that fit their bytes without overflow, every byte owned by
/// exactly one tensor, no name twice. Allocates no more than a small multiple of the header's
/// length. Throws std::runtime_error saying what was found; `source` names the file in the message.
/// Format: 8 bytes little-endian header length N, N bytes of JSON, then the tensors' bytes.
SafetensorsHeader parse_safetensors(const uint8_t* data, size_t size, const std::string& source);

/// A safetensors file mapped into memory. Tensors share the mapping (copy on write) and keep it
/// alive; nothing is read before it is used. A value: copies share the mapping.
class SafetensorsFile {
 public:
  /// Throws std::runtime_error if the file cannot be opened or is not sound.
  explicit SafetensorsFile(const std::string& path);

  const std::vector<SafetensorsEntry>& entries() const;
  const std::map<std::string, std::string>& metadata() const;
  bool contains(const std::string& name) const;
  /// CPU tensor; std::out_of_range for a name that is not in the file. A Bool tensor whose bytes
  /// are not all 0 or 1 is refused.
  at::Tensor tensor(const std::string& name) const;
  NamedTensors tensors() const;
  std::string sha256() const;  ///< of the whole file, 64 hexadecimal digits

 private:
  struct Mapping;
  std::shared_ptr<const Mapping> mapping_;
  at::Tensor view(const SafetensorsEntry& entry) const;
};

/// Writes `tensors` (any device, any strides) to `path`, whole or not at all: into a temporary file
/// beside it, flushed to disk, then renamed. Returns the SHA-256 of the file. Throws
/// std::invalid_argument on a repeated name or a dtype that safetensors lacks, std::runtime_error
/// where the disk refuses (full, no permission); an older file is intact then.
std::string write_safetensors(const std::string& path, const NamedTensors& tensors,
                              const std::map<std::string, std::string>& metadata = {});

}  // namespace headkit
