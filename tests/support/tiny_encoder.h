#pragma once

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <string>
#include <utility>
#include <vector>

#include "headkit/models/encoder.h"

namespace headkit::testing {

/// BERT of two layers, three heads of width 4 and 40 neurons, with a classifier of five.
inline constexpr char kTinyBert[] = R"({
  "model_type": "bert", "architectures": ["BertForSequenceClassification"],
  "num_hidden_layers": 2, "num_attention_heads": 3, "hidden_size": 12, "intermediate_size": 40,
  "vocab_size": 20, "max_position_embeddings": 9, "layer_norm_eps": 1e-6,
  "id2label": {"0": "a", "1": "b", "2": "c", "3": "d", "4": "e"}})";

/// ViT of the same sizes for images of 4 x 6 pixels, without a classifier.
inline constexpr char kTinyVit[] = R"({
  "model_type": "vit", "architectures": ["ViTModel"],
  "num_hidden_layers": 2, "num_attention_heads": 3, "hidden_size": 12, "intermediate_size": 40,
  "image_size": [4, 6], "patch_size": 2, "num_channels": 1, "layer_norm_eps": 1e-6})";

using NamedWeights = std::vector<std::pair<std::string, at::Tensor>>;

/// Random weights of float64 by the names of transformers.
inline NamedWeights tiny_weights(bool is_image_model, uint64_t seed = 0) {
  const at::Generator generator = at::detail::createCPUGenerator(seed);
  const auto normal = [&](std::vector<int64_t> shape) {
    return at::randn(shape, generator, at::kDouble) * 0.3;
  };
  NamedWeights weights;
  const auto add = [&](const std::string& name, std::vector<int64_t> shape) {
    weights.emplace_back(name, normal(std::move(shape)));
  };
  const auto linear = [&](const std::string& name, int64_t rows, int64_t columns) {
    add(name + ".weight", {rows, columns});
    add(name + ".bias", {rows});
  };
  const auto norm = [&](const std::string& name) {
    weights.emplace_back(name + ".weight", 1 + normal({12}));
    add(name + ".bias", {12});
  };
  const std::string base = is_image_model ? "" : "bert.";
  if (is_image_model) {
    add("embeddings.cls_token", {1, 1, 12});
    add("embeddings.position_embeddings", {1, 7, 12});
    add("embeddings.patch_embeddings.projection.weight", {12, 1, 2, 2});
    add("embeddings.patch_embeddings.projection.bias", {12});
  } else {
    add("bert.embeddings.word_embeddings.weight", {20, 12});
    add("bert.embeddings.position_embeddings.weight", {9, 12});
    add("bert.embeddings.token_type_embeddings.weight", {2, 12});
    norm("bert.embeddings.LayerNorm");
  }
  for (int layer = 0; layer < 2; ++layer) {
    const std::string path =
        base + (is_image_model ? "layers." : "encoder.layer.") + std::to_string(layer) + ".";
    const std::vector<std::string> maps =
        is_image_model ? std::vector<std::string>{"attention.q_proj", "attention.k_proj",
                                                  "attention.v_proj", "attention.o_proj"}
                       : std::vector<std::string>{"attention.self.query", "attention.self.key",
                                                  "attention.self.value", "attention.output.dense"};
    for (const std::string& map : maps) linear(path + map, 12, 12);
    norm(path + (is_image_model ? "layernorm_before" : "attention.output.LayerNorm"));
    if (is_image_model) norm(path + "layernorm_after");
    linear(path + (is_image_model ? "mlp.fc1" : "intermediate.dense"), 40, 12);
    linear(path + (is_image_model ? "mlp.fc2" : "output.dense"), 12, 40);
    if (!is_image_model) norm(path + "output.LayerNorm");
  }
  if (is_image_model) {
    norm("layernorm");
  } else {
    linear("bert.pooler.dense", 12, 12);
    linear("classifier", 5, 12);
  }
  return weights;
}

inline Encoder tiny_encoder(bool is_image_model = false) {
  return Encoder(EncoderConfig::from_json(is_image_model ? kTinyVit : kTinyBert),
                 tiny_weights(is_image_model));
}

inline Batch tiny_batch(bool is_image_model = false) {
  const at::Generator generator = at::detail::createCPUGenerator(7);
  if (is_image_model) {
    return {{"pixel_values", at::randn({3, 1, 4, 6}, generator, at::kDouble)}};
  }
  at::Tensor mask = at::ones({3, 7}, at::kLong);
  mask[1].slice(0, 4).zero_();
  return {{"input_ids", at::randint(0, 20, {3, 7}, generator, at::kLong)},
          {"attention_mask", mask},
          {"token_type_ids", at::randint(0, 2, {3, 7}, generator, at::kLong)},
          {"labels", at::tensor({0, 4, 2}, at::kLong)}};
}

}  // namespace headkit::testing
