#include "persistence/checkpoint.h"

#include <filesystem>
#include <map>
#include <stdexcept>

#include "core/json.h"
#include "headkit/core/error.h"
#include "persistence/text_file.h"

namespace headkit {
namespace {

constexpr char kWeights[] = "/model.safetensors", kIndex[] = "/model.safetensors.index.json";
constexpr size_t kMaxIndexBytes = size_t{64} << 20;

// Names of files by tensor; each file lies in the folder itself.
std::map<std::string, std::string> read_index(const std::string& path) {
  const std::string text = read_text_file(path, "an index of weights", kMaxIndexBytes);
  std::map<std::string, std::string> files;
  try {
    const Json map = member("load", parse_json("load", text), "weight_map");
    HEADKIT_CHECK(map.is_object(), "load", "weight_map from tensors to files", map.type_name());
    for (const auto& [tensor, file] : map.items()) {
      const std::string name = file.is_string() ? file.get<std::string>() : "";
      HEADKIT_CHECK(!name.empty() && std::filesystem::path(name).filename() == name, "load",
                    "the name of a file in the folder", file.dump(), " for '", tensor, "'");
      files.emplace(tensor, name);
    }
  } catch (const std::logic_error& error) {
    throw std::runtime_error(std::string(error.what()) + " (in '" + path + "')");
  }
  return files;
}

}  // namespace

NamedTensors read_checkpoint(const std::string& folder) {
  std::error_code ignored;
  if (std::filesystem::exists(folder + kWeights, ignored)) {
    return SafetensorsFile(folder + kWeights).tensors();
  }
  HEADKIT_CHECK_RUNTIME(std::filesystem::exists(folder + kIndex, ignored), "load",
                        "a folder with model.safetensors or model.safetensors.index.json", "'",
                        folder, "' without (pickled weights are not read: save them again)");
  std::map<std::string, SafetensorsFile> opened;
  NamedTensors tensors;
  for (const auto& [name, file] : read_index(folder + kIndex)) {
    auto shard = opened.find(file);
    if (shard == opened.end()) {
      shard = opened.emplace(file, SafetensorsFile(c10::str(folder, "/", file))).first;
    }
    HEADKIT_CHECK_RUNTIME(shard->second.contains(name), "load",
                          "'" + name + "' where the index says it is", "none in '", folder, "/",
                          file, "'");
    tensors.emplace_back(name, shard->second.tensor(name));
  }
  return tensors;
}

}  // namespace headkit
