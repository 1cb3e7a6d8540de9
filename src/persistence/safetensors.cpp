#include "headkit/persistence/safetensors.h"

#include <ATen/ATen.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <set>
#include <stdexcept>

#include "core/sha256.h"
#include "headkit/core/error.h"
#include "persistence/write_safetensors.h"

namespace headkit {
namespace {

constexpr size_t kLengthBytes = 8;
constexpr size_t kMaxHeaderBytes = 100'000'000;  // the limit of the format
constexpr size_t kMaxDims = 64;
constexpr size_t kAlignment = 8;

struct DtypeName {
  const char* name;
  at::ScalarType type;
};
constexpr DtypeName kDtypes[] = {
    {"F64", at::kDouble},          {"F32", at::kFloat},        {"F16", at::kHalf},
    {"BF16", at::kBFloat16},       {"I64", at::kLong},         {"I32", at::kInt},
    {"I16", at::kShort},           {"I8", at::kChar},          {"U64", at::kUInt64},
    {"U32", at::kUInt32},          {"U16", at::kUInt16},       {"U8", at::kByte},
    {"BOOL", at::kBool},           {"C64", at::kComplexFloat}, {"F8_E4M3", at::kFloat8_e4m3fn},
    {"F8_E5M2", at::kFloat8_e5m2},
};

std::optional<at::ScalarType> dtype_of(const std::string& name) {
  for (const DtypeName& each : kDtypes) {
    if (name == each.name) return each.type;
  }
  return std::nullopt;
}

const char* name_of(at::ScalarType type) {
  for (const DtypeName& each : kDtypes) {
    if (type == each.type) return each.name;
  }
  return nullptr;
}

std::string dtype_names() {
  std::string names;
  for (const DtypeName& each : kDtypes)
    names += (names.empty() ? "" : ", ") + std::string(each.name);
  return names;
}

// A hostile name may be megabytes of control characters; a message shows its start.
std::string shown(const std::string& name) {
  std::string text;
  for (char c : name.substr(0, 60)) {
    text += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? '?' : c;
  }
  return "'" + text + (name.size() > 60 ? "...'" : "'");
}

// Reads the header without building a document: the grammar is fixed and three levels deep, so that
// memory stays proportional to the text, repeated keys are seen, and nesting cannot grow.
class HeaderReader : public nlohmann::json_sax<nlohmann::json> {
 public:
  SafetensorsHeader header;
  std::string problem;

  bool null() override { return refuse("null"); }
  bool boolean(bool) override { return refuse("a boolean"); }
  bool number_float(double, const std::string& text) override { return refuse(text.substr(0, 40)); }
  bool number_integer(int64_t value) override { return refuse(std::to_string(value)); }
  bool binary(nlohmann::json::binary_t&) override { return refuse("binary data"); }

  bool number_unsigned(uint64_t value) override {
    if (place_ == kShape && entry_.shape.size() < kMaxDims && value <= INT64_MAX) {
      entry_.shape.push_back(static_cast<int64_t>(value));
      return true;
    }
    if (place_ == kOffsets && offsets_.size() < 2) {
      offsets_.push_back(value);
      return true;
    }
    return refuse(std::to_string(value));
  }

  bool string(std::string& value) override {
    if (place_ == kMetadata) {
      const bool fresh = header.metadata.emplace(key_, value).second;
      return fresh || fail("metadata key " + shown(key_) + " twice");
    }
    if (place_ == kEntry && key_ == "dtype") {
      const auto type = dtype_of(value);
      if (!type) return fail("dtype " + shown(value) + " of tensor " + shown(entry_.name));
      entry_.dtype = *type;
      return true;
    }
    return refuse("a string");
  }

  bool start_object(size_t) override {
    if (place_ == kOutside) {
      place_ = kRoot;
      return true;
    }
    if (place_ != kRoot) return refuse("an object");
    place_ = entry_.name == "__metadata__" ? kMetadata : kEntry;
    return true;
  }

  bool key(std::string& value) override {
    if (place_ == kRoot) {
      if (value == "__metadata__") {
        if (std::exchange(has_metadata_, true)) return fail("'__metadata__' twice");
      }
      entry_ = {};
      entry_.name = value;
      offsets_.clear();
      seen_ = 0;
      return true;
    }
    key_ = value;
    if (place_ == kMetadata) return true;
    const int bit = value == "dtype" ? 1 : value == "shape" ? 2 : value == "data_offsets" ? 4 : 0;
    if (bit == 0 || (seen_ & bit) != 0) {
      return fail("member " + shown(value) + (bit ? " twice" : "") + " in tensor " +
                  shown(entry_.name));
    }
    seen_ |= bit;
    return true;
  }

  bool end_object() override {
    if (place_ == kEntry) {
      if (seen_ != 7 || offsets_.size() != 2) {
        return fail("tensor " + shown(entry_.name) + " without dtype, shape or two data_offsets");
      }
      entry_.begin = offsets_[0];
      entry_.end = offsets_[1];
      header.entries.push_back(std::move(entry_));
    }
    place_ = place_ == kRoot ? kOutside : kRoot;
    return true;
  }

  bool start_array(size_t) override {
    if (place_ == kEntry && key_ == "shape") {
      place_ = kShape;
    } else if (place_ == kEntry && key_ == "data_offsets") {
      place_ = kOffsets;
    } else {
      return refuse("an array");
    }
    return true;
  }

  bool end_array() override {
    place_ = kEntry;
    return true;
  }

  bool parse_error(size_t position, const std::string&,
                   const nlohmann::detail::exception&) override {
    return fail("no JSON at byte " + std::to_string(position) + " of the header");
  }

 private:
  enum Place { kOutside, kRoot, kMetadata, kEntry, kShape, kOffsets };

  bool fail(std::string text) {
    if (problem.empty()) problem = std::move(text);
    return false;
  }
  bool refuse(const std::string& what) {
    const char* kPlaces[] = {"outside the header object", "as the value of tensor ",
                             "in __metadata__, key ",     "in tensor ",
                             "in the shape of tensor ",   "in the data_offsets of tensor "};
    return fail(what + " " + kPlaces[place_] +
                (place_ == kOutside ? "" : shown(place_ == kMetadata ? key_ : entry_.name)));
  }

  Place place_ = kOutside;
  SafetensorsEntry entry_;
  std::vector<uint64_t> offsets_;
  std::string key_;
  int seen_ = 0;
  bool has_metadata_ = false;
};

// Bytes of a tensor, or nothing where sizes, strides or bytes overflow.
std::optional<size_t> byte_size(const std::vector<int64_t>& shape, at::ScalarType dtype) {
  int64_t elements = 1;
  int64_t stride = 1;  // torch computes strides with empty axes taken as 1
  for (int64_t size : shape) {
    if (__builtin_mul_overflow(stride, std::max<int64_t>(size, 1), &stride)) return std::nullopt;
    elements *= size;
  }
  int64_t bytes;
  if (__builtin_mul_overflow(stride, static_cast<int64_t>(c10::elementSize(dtype)), &bytes)) {
    return std::nullopt;
  }
  return elements == 0 ? 0 : static_cast<size_t>(bytes);
}

std::string text_of(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (int64_t size : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + "]";
}

template <typename... Found>
void require(bool condition, const std::string& source, const char* expected,
             const Found&... found) {
  HEADKIT_CHECK_RUNTIME(condition, "safetensors", std::string(expected) + " in '" + source + "'",
                        found..., "; the file is damaged or hostile, fetch it again");
}

}  // namespace

SafetensorsHeader parse_safetensors(const uint8_t* data, size_t size, const std::string& source) {
  require(size >= kLengthBytes, source, "at least 8 bytes", size);
  uint64_t length = 0;
  for (size_t i = 0; i < kLengthBytes; ++i) length |= uint64_t{data[i]} << (8 * i);
  require(length <= kMaxHeaderBytes && length <= size - kLengthBytes, source,
          "a header that fits the file and 100 MB", length, " bytes of header in a file of ", size);

  const uint8_t* text = data + kLengthBytes;
  require(length > 0 && text[0] == '{', source, "a header that is a JSON object",
          length == 0 ? "nothing" : "another first byte");
  HeaderReader reader;
  const bool parsed = nlohmann::json::sax_parse(text, text + length, &reader);
  require(parsed, source, "a header of dtype, shape and data_offsets per tensor",
          reader.problem.empty() ? "no JSON" : reader.problem);

  SafetensorsHeader& header = reader.header;
  const size_t start = kLengthBytes + length;
  const size_t available = size - start;
  for (SafetensorsEntry& entry : header.entries) {
    require(entry.begin <= entry.end && entry.end <= available, source,
            "data_offsets inside the file", "[", entry.begin, ", ", entry.end, "] of ", available,
            " bytes for tensor ", shown(entry.name));
    const auto bytes = byte_size(entry.shape, entry.dtype);
    require(bytes && *bytes == entry.end - entry.begin, source, "bytes that fit the shape",
            entry.end - entry.begin, " bytes for shape ", text_of(entry.shape), " ",
            name_of(entry.dtype), " of tensor ", shown(entry.name));
    entry.begin += start;
    entry.end += start;
  }

  std::vector<size_t> order(header.entries.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(),
            [&](size_t a, size_t b) { return header.entries[a].name < header.entries[b].name; });
  for (size_t i = 1; i < order.size(); ++i) {
    require(header.entries[order[i]].name != header.entries[order[i - 1]].name, source,
            "every name once", "tensor ", shown(header.entries[order[i]].name), " twice");
  }
  std::stable_sort(header.entries.begin(), header.entries.end(), [](const auto& a, const auto& b) {
    return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
  });
  size_t next = start;
  for (const SafetensorsEntry& entry : header.entries) {
    require(entry.begin == next, source, "tensors side by side", "tensor ", shown(entry.name),
            entry.begin < next ? " overlapping another" : " after a gap");
    next = entry.end;
  }
  require(next == size, source, "no bytes after the last tensor", size - next, " bytes");
  return std::move(reader.header);
}

struct SafetensorsFile::Mapping {
  uint8_t* data = nullptr;
  size_t size = 0;
  SafetensorsHeader header;
  std::map<std::string, size_t> place;

  Mapping() = default;
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() {
    if (data != nullptr) ::munmap(data, size);
  }
};

SafetensorsFile::SafetensorsFile(const std::string& path) {
  // O_NONBLOCK: opening a pipe by mistake must not wait for a writer.
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  HEADKIT_CHECK_RUNTIME(file >= 0, "safetensors", "a readable file", "'", path,
                        "': ", std::strerror(errno));
  struct stat status {};
  const bool regular = ::fstat(file, &status) == 0 && S_ISREG(status.st_mode);
  auto mapping = std::make_shared<Mapping>();
  int error = 0;
  if (regular && status.st_size >= static_cast<off_t>(kLengthBytes)) {
    mapping->size = static_cast<size_t>(status.st_size);
    void* memory = ::mmap(nullptr, mapping->size, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
    error = errno;
    if (memory != MAP_FAILED) mapping->data = static_cast<uint8_t*>(memory);
  }
  ::close(file);
  HEADKIT_CHECK_RUNTIME(regular, "safetensors", "a regular file", "'", path, "'");
  require(status.st_size >= static_cast<off_t>(kLengthBytes), path, "at least 8 bytes",
          status.st_size);
  HEADKIT_CHECK_RUNTIME(mapping->data != nullptr, "safetensors", "a file that can be mapped", "'",
                        path, "': ", std::strerror(error));
  mapping->header = parse_safetensors(mapping->data, mapping->size, path);
  for (size_t i = 0; i < mapping->header.entries.size(); ++i) {
    mapping->place.emplace(mapping->header.entries[i].name, i);
  }
  mapping_ = std::move(mapping);
}

const std::vector<SafetensorsEntry>& SafetensorsFile::entries() const {
  return mapping_->header.entries;
}

const std::map<std::string, std::string>& SafetensorsFile::metadata() const {
  return mapping_->header.metadata;
}

bool SafetensorsFile::contains(const std::string& name) const {
  return mapping_->place.count(name) > 0;
}

at::Tensor SafetensorsFile::view(const SafetensorsEntry& entry) const {
  uint8_t* data = mapping_->data + entry.begin;
  const size_t bytes = entry.end - entry.begin;
  if (entry.dtype == at::kBool) {
    const bool sound = std::all_of(data, data + bytes, [](uint8_t byte) { return byte <= 1; });
    require(sound, "a memory-mapped file", "bytes 0 and 1 in a BOOL tensor", "others in ",
            shown(entry.name));
  }
  const auto options = at::TensorOptions().dtype(entry.dtype);
  if (bytes == 0) return at::empty(entry.shape, options);
  const size_t alignment = std::min<size_t>(c10::elementSize(entry.dtype), kAlignment);
  if (reinterpret_cast<uintptr_t>(data) % alignment != 0) {
    at::Tensor copy = at::empty(entry.shape, options);
    std::memcpy(copy.mutable_data_ptr(), data, bytes);
    return copy;
  }
  return at::from_blob(data, entry.shape, [keep = mapping_](void*) {}, options);
}

at::Tensor SafetensorsFile::tensor(const std::string& name) const {
  const auto found = mapping_->place.find(name);
  HEADKIT_CHECK_INDEX(found != mapping_->place.end(), "safetensors", "the name of a tensor",
                      shown(name));
  return view(entries()[found->second]);
}

NamedTensors SafetensorsFile::tensors() const {
  NamedTensors all;
  all.reserve(entries().size());
  for (const SafetensorsEntry& entry : entries()) all.emplace_back(entry.name, view(entry));
  return all;
}

std::string SafetensorsFile::sha256() const {
  Sha256 hash;
  hash.update(mapping_->data, mapping_->size);
  return hash.hex();
}

std::string write_safetensors(AtomicFile& file, const NamedTensors& tensors,
                              const std::map<std::string, std::string>& metadata) {
  std::set<std::string> names{"__metadata__"};
  for (const auto& [name, tensor] : tensors) {
    HEADKIT_CHECK(names.insert(name).second, "write_safetensors",
                  "every name once, none '__metadata__'", shown(name), " again");
    HEADKIT_CHECK(tensor.defined() && tensor.layout() == at::kStrided &&
                      name_of(tensor.scalar_type()) != nullptr,
                  "write_safetensors", "dense tensors of dtype " + dtype_names(), shown(name),
                  tensor.defined() ? " of dtype " + std::string(tensor.dtype().name())
                                   : std::string(" undefined"));
  }
  // Widest elements first, so that every tensor begins at a multiple of its element.
  std::vector<const std::pair<std::string, at::Tensor>*> order;
  for (const auto& each : tensors) order.push_back(&each);
  std::stable_sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
    return a->second.element_size() > b->second.element_size();
  });

  std::string header;
  try {
    nlohmann::ordered_json json = nlohmann::ordered_json::object();
    if (!metadata.empty()) json["__metadata__"] = metadata;
    size_t offset = 0;
    for (const auto* each : order) {
      const size_t end = offset + each->second.nbytes();
      json[each->first] = {{"dtype", name_of(each->second.scalar_type())},
                           {"shape", each->second.sizes().vec()},
                           {"data_offsets", {offset, end}}};
      offset = end;
    }
    header = json.dump();
  } catch (const nlohmann::json::exception&) {
    throw std::invalid_argument(
        error_message("write_safetensors", "names and metadata in UTF-8", "other bytes"));
  }
  header.append((kAlignment - header.size() % kAlignment) % kAlignment, ' ');
  HEADKIT_CHECK(header.size() <= kMaxHeaderBytes, "write_safetensors", "a header of 100 MB at most",
                header.size(), " bytes");

  uint8_t length[kLengthBytes];
  for (size_t i = 0; i < kLengthBytes; ++i)
    length[i] = static_cast<uint8_t>(header.size() >> (8 * i));
  file.write(length, kLengthBytes);
  file.write(header.data(), header.size());
  for (const auto* each : order) {
    const at::Tensor bytes = each->second.detach().cpu().contiguous().resolve_conj().resolve_neg();
    file.write(bytes.const_data_ptr(), bytes.nbytes());
  }
  return file.finish();
}

std::string write_safetensors(const std::string& path, const NamedTensors& tensors,
                              const std::map<std::string, std::string>& metadata) {
  const std::filesystem::path target(path);
  const std::string folder = target.has_parent_path() ? target.parent_path().string() : ".";
  AtomicFile file("write_safetensors", folder);
  const std::string hash = write_safetensors(file, tensors, metadata);
  file.commit(target.filename().string());
  return hash;
}

}  // namespace headkit
