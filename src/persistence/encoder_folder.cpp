#include "headkit/persistence/encoder_folder.h"

#include <ATen/ATen.h>

#include <filesystem>
#include <stdexcept>
#include <utility>

#include "core/json.h"
#include "core/json_members.h"
#include "headkit/core/error.h"
#include "persistence/checkpoint.h"
#include "persistence/text_file.h"

namespace headkit {
namespace {

constexpr size_t kMaxConfigBytes = size_t{16} << 20;

// What `make` gives; what it refuses is the fault of a file.
template <typename Make>
auto from_file(const std::string& path, const Make& make) {
  try {
    return make();
  } catch (const std::logic_error& error) {
    throw std::runtime_error(std::string(error.what()) + " (in '" + path + "')");
  }
}

NamedTensors with_dtype(NamedTensors weights, std::optional<at::ScalarType> dtype) {
  if (!dtype) return weights;
  for (auto& [name, tensor] : weights) {
    if (tensor.is_floating_point()) tensor = tensor.to(*dtype);
  }
  return weights;
}

// The class that a saved folder names, as Python and `describe_encoder` write it.
std::string class_of(const ModelFolder& content) {
  if (content.details.empty()) return "";
  return optional_text("load", parse_json("load", content.details), "model_class");
}

SavedEncoder load_saved(const std::string& folder, const EncoderOptions& options) {
  HEADKIT_CHECK(options.architecture.empty(), "load",
                "no architecture for a folder that names its own", options.architecture);
  const ModelFolder content = read_model_folder(folder);
  const std::string path = folder + "/headkit.json";
  SavedEncoder saved;
  saved.gates = content.gates;
  saved.model = from_file(path, [&] {
    EncoderConfig config = EncoderConfig::from_json(content.config, class_of(content));
    HEADKIT_CHECK(config.layout == content.layout, "load",
                  "a configuration of layout " + content.layout.to_json(), config.layout.to_json());
    return std::make_shared<Encoder>(
        std::move(config), with_dtype(content.weights, options.dtype),
        EncoderUnits{content.heads, content.neurons, content.sublayers}, content.base_fingerprint);
  });
  if (!content.policy.empty()) {
    saved.policy = from_file(path, [&] { return policy_from_json(content.policy); });
    saved.policy->check_model(*saved.model);
  }
  return saved;
}

SavedEncoder load_plain(const std::string& folder, const EncoderOptions& options) {
  const std::string path = folder + "/config.json";
  const std::string text = read_text_file(path, "a folder with a config.json", kMaxConfigBytes);
  EncoderConfig config =
      from_file(path, [&] { return EncoderConfig::from_json(text, options.architecture); });
  const NamedTensors weights = with_dtype(read_checkpoint(folder), options.dtype);
  SavedEncoder saved;
  saved.model =
      from_file(folder, [&] { return std::make_shared<Encoder>(std::move(config), weights); });
  return saved;
}

}  // namespace

SavedEncoder load_encoder(const std::string& folder, const EncoderOptions& options) {
  HEADKIT_CHECK(!options.dtype || at::isFloatingType(*options.dtype), "load",
                "a floating-point dtype", *options.dtype);
  std::error_code ignored;
  const bool is_saved = std::filesystem::exists(folder + "/headkit.json", ignored);
  return is_saved ? load_saved(folder, options) : load_plain(folder, options);
}

ModelFolder describe_encoder(Encoder& model) {
  ModelFolder content = describe_model(model, model.base_fingerprint());
  content.config = model.config().json;
  content.details =
      Json{{"model_class", model.config().architecture}, {"feed_forward", true}}.dump();
  return content;
}

}  // namespace headkit
