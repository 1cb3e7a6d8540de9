#include "headkit/models/encoder_config.h"

#include <array>
#include <cmath>
#include <tuple>
#include <utility>

#include "core/json.h"
#include "core/json_members.h"
#include "headkit/core/error.h"
#include "models/encoder_family.h"

namespace headkit {
namespace {

constexpr char kOperation[] = "encoder_config";
// Far beyond any model, and small enough that no product of two of them overflows.
constexpr int64_t kMostLayers = 4096, kMostUnits = int64_t{1} << 22;
constexpr int64_t kMostRows = int64_t{1} << 31;

constexpr std::array<std::pair<const char*, const char*>, 8> kActivations = {
    {{"gelu", "gelu"},
     {"gelu_python", "gelu"},
     {"gelu_new", "gelu_tanh"},
     {"gelu_fast", "gelu_tanh"},
     {"gelu_pytorch_tanh", "gelu_tanh"},
     {"relu", "relu"},
     {"silu", "silu"},
     {"swish", "silu"}}};

int64_t size_of(const Json& json, const char* name, int64_t most = kMostRows) {
  const int64_t size = integer_member(kOperation, json, name);
  HEADKIT_CHECK(size > 0 && size <= most, kOperation, c10::str(name, " from 1 to ", most), size);
  return size;
}

int64_t size_or(const Json& json, const char* name, int64_t otherwise) {
  return known_member(json, name) == nullptr ? otherwise : size_of(json, name);
}

bool flag_or(const Json& json, const char* name, bool otherwise) {
  return known_member(json, name) == nullptr ? otherwise : flag_member(kOperation, json, name);
}

std::string activation_of(const Json& json, const char* name) {
  const std::string given =
      known_member(json, name) == nullptr ? "gelu" : string_member(kOperation, json, name);
  std::string known;
  for (const auto& [theirs, ours] : kActivations) {
    if (given == theirs) return ours;
    known += (known.empty() ? "" : ", ") + std::string(theirs);
  }
  throw std::invalid_argument(
      error_message(kOperation, c10::str(name, " among ", known), "'", given, "'"));
}

// Height and width: one number for both, or two.
std::pair<int64_t, int64_t> sides_of(const Json& json, const char* name, int64_t otherwise) {
  const Json* given = known_member(json, name);
  if (given == nullptr || !given->is_array()) {
    const int64_t side = size_or(json, name, otherwise);
    return {side, side};
  }
  HEADKIT_CHECK(given->size() == 2, kOperation, c10::str(name, " of one number or two"),
                given->size());
  const auto side = [&](size_t place) { return size_of({{name, (*given)[place]}}, name); };
  return {side(0), side(1)};
}

int64_t labels_of(const Json& json) {
  const Json* names = known_member(json, "id2label");
  if (names == nullptr) return size_or(json, "num_labels", 2);
  HEADKIT_CHECK(names->is_object() && !names->empty(), kOperation,
                "id2label with a name for each label", names->dump());
  return static_cast<int64_t>(names->size());
}

// -1 = none, which a model that counts positions from it cannot have.
int64_t padding_of(const Json& json, const EncoderFamily& family) {
  const int64_t least = family.counts_positions ? 0 : -1;
  if (!json.contains("pad_token_id")) return family.counts_positions ? 1 : 0;
  const int64_t given = optional_integer(kOperation, json, "pad_token_id").value_or(-1);
  HEADKIT_CHECK(given >= least, kOperation, c10::str("pad_token_id of at least ", least), given);
  return given;
}

// What would change the function and is not computed here.
void refuse_others(const Json& json) {
  const std::string positions = optional_text(kOperation, json, "position_embedding_type");
  HEADKIT_CHECK(positions.empty() || positions == "absolute", kOperation,
                "position_embedding_type 'absolute'", "'", positions, "'");
  for (const char* name : {"is_decoder", "add_cross_attention"}) {
    HEADKIT_CHECK(!flag_or(json, name, false), kOperation, "an encoder", name, " = true");
  }
  for (const char* name : {"pruned_heads", "quantization_config"}) {
    const Json* given = known_member(json, name);
    HEADKIT_CHECK(given == nullptr || given->empty(), kOperation,
                  "whole weights as they were trained", name, " = ", given->dump());
  }
}

std::string architecture_of(const Json& json, const EncoderFamily& family,
                            const std::string& asked) {
  std::string name = asked;
  if (const Json* given = known_member(json, "architectures"); name.empty() && given != nullptr) {
    HEADKIT_CHECK(given->is_array() && !given->empty() && given->front().is_string(), kOperation,
                  "architectures with the name of a class", given->dump());
    name = given->front().get<std::string>();
  }
  HEADKIT_CHECK(name == family.base || name == family.classifier, kOperation,
                c10::str("architecture ", family.base, " or ", family.classifier), "'", name,
                "'; name one of them to load that part of the model");
  return name;
}

}  // namespace

EncoderConfig EncoderConfig::from_json(const std::string& text, const std::string& architecture) {
  const Json json = parse_json(kOperation, text);
  const std::string type = string_member(kOperation, json, "model_type");
  const EncoderFamily* family = find_family(type);
  HEADKIT_CHECK(family != nullptr, kOperation, "model_type " + family_names(), "'", type, "'");
  refuse_others(json);

  EncoderConfig config;
  config.json = text;
  config.model_type = type;
  config.architecture = architecture_of(json, *family, architecture);
  HeadLayout& layout = config.layout;
  layout.layers = size_of(json, family->sizes.layers, kMostLayers);
  layout.heads = size_of(json, family->sizes.heads, kMostUnits);
  layout.model_dim = size_of(json, family->sizes.width, kMostUnits);
  layout.feed_forward = size_of(json, family->sizes.neurons, kMostUnits);
  HEADKIT_CHECK(layout.model_dim % layout.heads == 0, kOperation,
                c10::str(family->sizes.width, " that ", layout.heads, " heads share evenly"),
                layout.model_dim);
  layout.head_dim = layout.model_dim / layout.heads;
  const int64_t head_dim = size_or(json, "head_dim", layout.head_dim);
  HEADKIT_CHECK(head_dim == layout.head_dim, kOperation, c10::str("head_dim ", layout.head_dim),
                head_dim);
  config.activation = activation_of(json, family->sizes.activation);
  const bool has_eps = known_member(json, "layer_norm_eps") != nullptr;
  if (has_eps) config.norm_eps = number_member(kOperation, json, "layer_norm_eps");
  HEADKIT_CHECK(std::isfinite(config.norm_eps) && config.norm_eps >= 0, kOperation,
                "layer_norm_eps of at least 0", config.norm_eps);
  if (config.architecture == family->classifier) config.labels = labels_of(json);

  if (family->norm_first) {
    std::tie(config.image_height, config.image_width) = sides_of(json, "image_size", 224);
    std::tie(config.patch_height, config.patch_width) = sides_of(json, "patch_size", 16);
    config.channels = size_or(json, "num_channels", 3);
    config.qkv_bias = flag_or(json, "qkv_bias", true);
    HEADKIT_CHECK(
        config.patch_height <= config.image_height && config.patch_width <= config.image_width,
        kOperation, "patch_size within image_size", config.patch_height, " x ", config.patch_width,
        " in ", config.image_height, " x ", config.image_width);
    config.pooled = size_or(json, "pooler_output_size", layout.model_dim);
    return config;
  }
  config.vocabulary = size_of(json, "vocab_size");
  config.positions = size_or(json, "max_position_embeddings", 512);
  if (family->has_token_types) config.token_types = size_or(json, "type_vocab_size", 2);
  config.padding_token = padding_of(json, *family);
  HEADKIT_CHECK(config.padding_token < config.vocabulary, kOperation,
                c10::str("pad_token_id below vocab_size ", config.vocabulary),
                config.padding_token);
  config.pooled = layout.model_dim;
  return config;
}

}  // namespace headkit
