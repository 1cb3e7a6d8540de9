#include "headkit/persistence/safetensors.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>
#include <fstream>
#include <iterator>
#include <random>

#include "core/sha256.h"
#include "support/scratch_folder.h"

namespace headkit {
namespace {

using testing::ScratchFolder;

std::string file_of(const std::string& header, size_t data_bytes, uint64_t length) {
  std::string file;
  for (int i = 0; i < 8; ++i) file += static_cast<char>(length >> (8 * i));
  return file + header + std::string(data_bytes, '\1');
}
std::string file_of(const std::string& header, size_t data_bytes) {
  return file_of(header, data_bytes, header.size());
}

SafetensorsHeader parse(const std::string& file) {
  return parse_safetensors(reinterpret_cast<const uint8_t*>(file.data()), file.size(), "file");
}

std::string read_all(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

void write_all(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

constexpr char kEntry[] = R"({"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}})";

NamedTensors every_dtype() {
  NamedTensors tensors;
  for (at::ScalarType type :
       {at::kBool, at::kByte, at::kChar, at::kShort, at::kInt, at::kLong, at::kHalf, at::kBFloat16,
        at::kFloat, at::kDouble, at::kUInt16, at::kUInt32, at::kUInt64, at::kComplexFloat,
        at::kFloat8_e4m3fn, at::kFloat8_e5m2}) {
    tensors.emplace_back(std::string("weight of ") + c10::toString(type),
                         at::arange(2, at::kFloat).repeat({3, 5}).to(type));
  }
  tensors.emplace_back("empty", at::zeros({0, 7}));
  tensors.emplace_back("scalar", at::scalar_tensor(0.1, at::kDouble));
  tensors.emplace_back("strided", at::randn({4, 6}).t());
  return tensors;
}

TEST(SafetensorsTest, EveryDtypeComesBackBitForBit) {
  const ScratchFolder folder;
  const NamedTensors saved = every_dtype();
  const std::string hash =
      write_safetensors(folder / "w.safetensors", saved, {{"made by", "a \"test\"\n"}});
  const SafetensorsFile file(folder / "w.safetensors");
  EXPECT_EQ(file.sha256(), hash);
  EXPECT_EQ(sha256_hex(read_all(folder / "w.safetensors")), hash);
  EXPECT_EQ(file.metadata().at("made by"), "a \"test\"\n");
  ASSERT_EQ(file.entries().size(), saved.size());
  for (const auto& [name, tensor] : saved) {
    const at::Tensor found = file.tensor(name);
    EXPECT_EQ(found.scalar_type(), tensor.scalar_type()) << name;
    EXPECT_EQ(found.sizes(), tensor.sizes()) << name;
    const at::Tensor expected = tensor.contiguous();
    EXPECT_EQ(0, std::memcmp(found.const_data_ptr(), expected.const_data_ptr(), expected.nbytes()))
        << name;
  }
  EXPECT_THROW(file.tensor("missing"), std::out_of_range);
}

TEST(SafetensorsTest, TensorsOutliveTheFileObjectAndDoNotWriteToIt) {
  const ScratchFolder folder;
  write_safetensors(folder / "w.safetensors", {{"a", at::zeros({3})}});
  const std::string before = read_all(folder / "w.safetensors");
  at::Tensor tensor;
  {
    const SafetensorsFile file(folder / "w.safetensors");
    tensor = file.tensor("a");
  }
  tensor += 1;
  EXPECT_TRUE(at::equal(tensor, at::ones({3})));
  EXPECT_EQ(read_all(folder / "w.safetensors"), before);
}

TEST(SafetensorsTest, UnalignedTensorsAreRead) {
  const ScratchFolder folder;
  const std::string header = R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                             R"("b":{"dtype":"F32","shape":[2],"data_offsets":[1,9]}})";
  write_all(folder / "w", file_of(header, 9));
  const SafetensorsFile file(folder / "w");
  EXPECT_EQ(file.tensor("b").view(at::kInt).select(0, 1).item<int>(), 0x01010101);
}

TEST(SafetensorsTest, RefusesFilesThatAreNotSound) {
  EXPECT_EQ(parse(file_of(kEntry, 24)).entries.size(), 1u);  // the sound one
  const std::string entry = R"("dtype":"F32","shape":[2,3],"data_offsets":[0,24])";
  const std::vector<std::pair<std::string, std::string>> hostile{
      {"empty", ""},
      {"seven bytes", std::string(7, '\0')},
      {"no header", file_of("", 0)},
      {"truncated data", file_of(kEntry, 23)},
      {"bytes left over", file_of(kEntry, 25)},
      {"header longer than the file", file_of(kEntry, 24, 1000)},
      {"header of 2^64 - 1 bytes", file_of(kEntry, 24, ~uint64_t{0})},
      {"header length that wraps", file_of(kEntry, 24, ~uint64_t{0} - 7)},
      {"array", file_of("[1]", 0)},
      {"no JSON", file_of("{oops", 0)},
      {"text after the object", file_of(std::string(kEntry) + "x", 24)},
      {"two objects", file_of(std::string(kEntry) + "{}", 24)},
      {"offsets outside",
       file_of(R"({"a":{"dtype":"F32","shape":[2,3],"data_offsets":[8,32]}})", 24)},
      {"offsets reversed",
       file_of(R"({"a":{"dtype":"F32","shape":[2,3],"data_offsets":[24,0]}})", 24)},
      {"negative offset",
       file_of(R"({"a":{"dtype":"F32","shape":[6],"data_offsets":[-24,0]}})", 24)},
      {"three offsets",
       file_of(R"({"a":{"dtype":"F32","shape":[6],"data_offsets":[0,24,24]}})", 24)},
      {"offsets missing", file_of(R"({"a":{"dtype":"F32","shape":[6]}})", 24)},
      {"fraction", file_of(R"({"a":{"dtype":"F32","shape":[6.0],"data_offsets":[0,24]}})", 24)},
      {"huge number",
       file_of(R"({"a":{"dtype":"F32","shape":[1e999],"data_offsets":[0,24]}})", 24)},
      {"shape and bytes differ",
       file_of(R"({"a":{"dtype":"F32","shape":[7],"data_offsets":[0,24]}})", 24)},
      {"shape overflows", file_of(R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],)"
                                  R"("data_offsets":[0,0]}})",
                                  0)},
      {"shape overflows to the bytes",
       file_of(R"({"a":{"dtype":"F32","shape":[9223372036854775807,2],"data_offsets":[0,24]}})",
               24)},
      {"strides of an empty tensor overflow",
       file_of(R"({"a":{"dtype":"F32","shape":[0,4294967296,4294967296],"data_offsets":[0,0]}})",
               0)},
      {"unknown dtype", file_of(R"({"a":{"dtype":"F99","shape":[6],"data_offsets":[0,24]}})", 24)},
      {"dtype is a number", file_of(R"({"a":{"dtype":4,"shape":[6],"data_offsets":[0,24]}})", 24)},
      {"member twice", file_of(R"({"a":{"dtype":"F32",)" + entry + "}}", 24)},
      {"unknown member", file_of(R"({"a":{"x":1,)" + entry + "}}", 24)},
      {"name twice", file_of(R"({"a":{)" + entry + R"(},"a":{)" + entry + "}}", 24)},
      {"overlap", file_of(R"({"a":{)" + entry + R"(},"b":{)" + entry + "}}", 24)},
      {"gap", file_of(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                      R"("b":{"dtype":"U8","shape":[2],"data_offsets":[3,5]}})",
                      5)},
      {"metadata is no text", file_of(R"({"__metadata__":{"a":1}})", 0)},
      {"metadata twice", file_of(R"({"__metadata__":{},"__metadata__":{}})", 0)},
      {"metadata key twice", file_of(R"({"__metadata__":{"a":"b","a":"c"}})", 0)},
      {"entry is an array", file_of(R"({"a":[]})", 0)},
      {"deep nesting", file_of("{\"a\":" + std::string(1000000, '['), 0)},
      {"deep objects", file_of(
                           [] {
                             std::string text = "{";
                             for (int i = 0; i < 100000; ++i) text += "\"a\":{";
                             return text;
                           }(),
                           0)},
      {"not UTF-8", file_of("{\"\xff\xfe\":{" + entry + "}}", 24)},
  };
  for (const auto& [what, file] : hostile) EXPECT_THROW(parse(file), std::runtime_error) << what;
}

TEST(SafetensorsTest, MessagesSayWhatWasFoundAndWhatToDo) {
  try {
    parse(file_of(kEntry, 20));
    FAIL();
  } catch (const std::runtime_error& error) {
    const std::string text = error.what();
    EXPECT_NE(text.find("[0, 24] of 20 bytes for tensor 'a'"), std::string::npos) << text;
    EXPECT_NE(text.find("fetch it again"), std::string::npos) << text;
  }
}

TEST(SafetensorsTest, BoolBytesOtherThanZeroAndOneAreRefused) {
  const ScratchFolder folder;
  const std::string header = R"({"a":{"dtype":"BOOL","shape":[1],"data_offsets":[0,1]}})";
  write_all(folder / "w", file_of(header, 0) + "\2");
  EXPECT_THROW(SafetensorsFile(folder / "w").tensor("a"), std::runtime_error);
}

TEST(SafetensorsTest, PathsThatAreNoFilesAreRefused) {
  const ScratchFolder folder;
  ASSERT_EQ(0, ::mkfifo((folder / "pipe").c_str(), 0600));
  EXPECT_THROW(SafetensorsFile(folder / "missing"), std::runtime_error);
  EXPECT_THROW(SafetensorsFile(folder / "pipe"), std::runtime_error);
  EXPECT_THROW(SafetensorsFile(folder / "."), std::runtime_error);
  EXPECT_THROW(write_safetensors(folder / "no folder/w", {}), std::runtime_error);
  EXPECT_THROW(write_safetensors(folder / "w", {{"a", at::zeros(1)}, {"a", at::zeros(1)}}),
               std::invalid_argument);
  EXPECT_THROW(write_safetensors(folder / "w", {{"a", at::zeros(1, at::kComplexDouble)}}),
               std::invalid_argument);
  EXPECT_THROW(write_safetensors(folder / "w", {{"\xff", at::zeros(1)}}), std::invalid_argument);
  EXPECT_FALSE(std::filesystem::exists(folder / "w"));
}

// A header is either refused or describes nothing but bytes of the file.
void expect_sound_or_refused(const std::string& file) {
  try {
    for (const SafetensorsEntry& entry : parse(file).entries) {
      ASSERT_LE(entry.begin, entry.end);
      ASSERT_LE(entry.end, file.size());
    }
  } catch (const std::runtime_error&) {
  }
}

TEST(SafetensorsTest, MutatedFilesNeverCrash) {
  const ScratchFolder folder;
  write_safetensors(folder / "w", every_dtype(), {{"format", "pt"}, {"note", "\u00e9\t\""}});
  const std::string sound = read_all(folder / "w");
  uint64_t header = 0;
  std::memcpy(&header, sound.data(), sizeof header);
  const std::string tokens[] = {"[", "]",     "{",        "}",    "\"",    ",",
                                ":", "-1",    "1e9",      "null", "true",  "18446744073709551615",
                                "0", "\\u00", "\xc3\x28", "F32",  "shape", "9223372036854775807"};
  std::mt19937 random(7);
  const auto below = [&](size_t n) { return static_cast<size_t>(random() % n); };
  for (int round = 0; round < 24000; ++round) {
    std::string file = sound;
    for (size_t edits = 1 + below(3); edits > 0; --edits) {
      const size_t place = below(std::min<size_t>(file.size(), header + 8));
      switch (below(6)) {
        case 0:
          file[place] = static_cast<char>(file[place] ^ (1 << below(8)));
          break;
        case 1:
          file.resize(below(file.size()) + 1);
          break;
        case 2:
          file[below(std::min<size_t>(file.size(), 8))] = static_cast<char>(random());
          break;
        case 3:
          file.insert(place, tokens[below(std::size(tokens))]);
          break;
        case 4:
          file.erase(place, 1 + below(20));
          break;
        default:
          file.insert(place, std::string(1 + below(200), "[{\"0"[below(4)]));
      }
      if (file.empty()) break;
    }
    // Half of them with a length that fits again, so that the damage reaches the JSON.
    if (below(2) == 0 && file.size() > 8) {
      const uint64_t length = std::min<uint64_t>(
          header + file.size() - std::min(file.size(), sound.size()), file.size() - 8);
      std::memcpy(file.data(), &length, sizeof length);
    }
    expect_sound_or_refused(file);
  }
}

class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    ::getrlimit(RLIMIT_FSIZE, &before_);
    handler_ = std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{bytes, before_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }

 private:
  rlimit before_{};
  void (*handler_)(int) = nullptr;
};

TEST(SafetensorsTest, AFullDiskLeavesTheOldFile) {
  const ScratchFolder folder;
  write_safetensors(folder / "w", {{"a", at::ones({10})}});
  const std::string before = read_all(folder / "w");
  {
    const FileSizeLimit limit(64 * 1024);
    try {
      write_safetensors(folder / "w", {{"a", at::zeros({1 << 20})}});
      FAIL();
    } catch (const std::runtime_error& error) {
      EXPECT_NE(std::string(error.what()).find("free some space"), std::string::npos)
          << error.what();
    }
  }
  EXPECT_EQ(read_all(folder / "w"), before);
  const auto files = std::filesystem::directory_iterator(folder / ".");
  EXPECT_EQ(1, std::distance(begin(files), end(files)));
}

}  // namespace
}  // namespace headkit
