#include "headkit/models/encoder.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <map>
#include <thread>

#include "headkit/pruners/pruner.h"
#include "headkit/pruners/removal.h"
#include "support/tiny_encoder.h"

namespace headkit {
namespace {

using namespace headkit::testing;

// The same model in plain operators, from the same names; gates [B, L, H].
class PlainModel {
 public:
  explicit PlainModel(bool is_image_model) : is_image_model_(is_image_model) {
    for (const auto& [name, tensor] : tiny_weights(is_image_model)) weights_[name] = tensor;
  }

  at::Tensor operator()(const Batch& batch, const at::Tensor& gates) const {
    at::Tensor x = is_image_model_ ? patches(batch) : words(batch);
    at::Tensor bias = at::zeros({x.size(0), 1, 1, x.size(1)}, at::kDouble);
    if (batch.count("attention_mask")) {
      bias.masked_fill_(batch.at("attention_mask").eq(0).unsqueeze(1).unsqueeze(1), -INFINITY);
    }
    for (int64_t l = 0; l < 2; ++l) {
      const std::string path =
          base() + (is_image_model_ ? "layers." : "encoder.layer.") + std::to_string(l) + ".";
      const at::Tensor gate = gates.select(1, l);
      if (is_image_model_) {
        x = x + attend(norm(x, path + "layernorm_before"), path + "attention.",
                       {"q_proj", "k_proj", "v_proj", "o_proj"}, bias, gate);
        x = x + feed(norm(x, path + "layernorm_after"), path + "mlp.fc1", path + "mlp.fc2");
      } else {
        x = norm(x + attend(x, path + "attention.",
                            {"self.query", "self.key", "self.value", "output.dense"}, bias, gate),
                 path + "attention.output.LayerNorm");
        x = norm(x + feed(x, path + "intermediate.dense", path + "output.dense"),
                 path + "output.LayerNorm");
      }
    }
    if (is_image_model_) return norm(x, "layernorm");
    return linear(at::tanh(linear(x.select(1, 0), "bert.pooler.dense")), "classifier");
  }

 private:
  std::string base() const { return is_image_model_ ? "" : "bert."; }
  at::Tensor linear(const at::Tensor& x, const std::string& name) const {
    return at::matmul(x, weights_.at(name + ".weight").t()) + weights_.at(name + ".bias");
  }
  at::Tensor norm(const at::Tensor& x, const std::string& name) const {
    const at::Tensor centred = x - x.mean(-1, true);
    return centred / (centred.square().mean(-1, true) + 1e-6).sqrt() *
               weights_.at(name + ".weight") +
           weights_.at(name + ".bias");
  }
  at::Tensor words(const Batch& batch) const {
    const std::string path = "bert.embeddings.";
    const auto row = [&](const char* table, const at::Tensor& index) {
      return weights_.at(path + table + ".weight").index({index});
    };
    return norm(row("word_embeddings", batch.at("input_ids")) +
                    row("token_type_embeddings", batch.at("token_type_ids")) +
                    weights_.at(path + "position_embeddings.weight").slice(0, 0, 7),
                path + "LayerNorm");
  }
  at::Tensor patches(const Batch& batch) const {
    const at::Tensor& pixels = batch.at("pixel_values");
    const at::Tensor kernel =
        weights_.at("embeddings.patch_embeddings.projection.weight").reshape({12, 4});
    std::vector<at::Tensor> tokens{
        weights_.at("embeddings.cls_token").expand({pixels.size(0), 1, 12})};
    for (int64_t row = 0; row < 4; row += 2) {
      for (int64_t column = 0; column < 6; column += 2) {
        const at::Tensor patch =
            pixels.slice(2, row, row + 2).slice(3, column, column + 2).reshape({-1, 4});
        tokens.push_back((at::matmul(patch, kernel.t()) +
                          weights_.at("embeddings.patch_embeddings.projection.bias"))
                             .unsqueeze(1));
      }
    }
    return at::cat(tokens, 1) + weights_.at("embeddings.position_embeddings");
  }
  at::Tensor attend(const at::Tensor& x, const std::string& path,
                    const std::array<const char*, 4>& names, const at::Tensor& bias,
                    const at::Tensor& gate) const {
    const auto split = [&](const char* name) {
      return linear(x, path + name).reshape({x.size(0), x.size(1), 3, 4}).transpose(1, 2);
    };
    const at::Tensor scores = at::matmul(split(names[0]), split(names[1]).transpose(2, 3)) / 2;
    const at::Tensor heads = at::matmul(at::softmax(scores + bias, -1), split(names[2])) *
                             gate.unsqueeze(2).unsqueeze(3);
    return linear(heads.transpose(1, 2).reshape({x.size(0), x.size(1), 12}), path + names[3]);
  }
  at::Tensor feed(const at::Tensor& x, const std::string& in, const std::string& out) const {
    const at::Tensor values = linear(x, in);
    return linear(values * 0.5 * (1 + at::erf(values / std::sqrt(2.0))), out);
  }

  bool is_image_model_;
  std::map<std::string, at::Tensor> weights_;
};

class EncoderTest : public ::testing::TestWithParam<bool> {
 protected:
  at::Tensor gates() const {
    return at::rand({3, 2, 3}, at::detail::createCPUGenerator(3), at::kDouble)
               .gt(0.4)
               .to(at::kDouble) *
           1.5;
  }
};

TEST_P(EncoderTest, OutputsAreThoseOfPlainOperators) {
  Encoder model = tiny_encoder(GetParam());
  const PlainModel plain(GetParam());
  const Batch batch = tiny_batch(GetParam());
  const at::Tensor open = at::ones({3, 2, 3}, at::kDouble);
  EXPECT_TRUE(at::allclose(model(batch), plain(batch, open), 1e-10, 1e-10));
  GateSet set;
  set.heads = gates();
  EXPECT_TRUE(at::allclose(model(batch, set), plain(batch, gates()), 1e-10, 1e-10));
  EXPECT_FALSE(at::allclose(model(batch, set), model(batch), 1e-3));
}

TEST_P(EncoderTest, GradientsAreThoseOfPlainOperators) {
  Encoder model = tiny_encoder(GetParam());
  const Batch batch = tiny_batch(GetParam());
  const PlainModel plain(GetParam());
  const auto slopes = [&](const auto& run) {
    const at::Tensor heads = (gates() + 0.5).set_requires_grad(true);
    return torch::autograd::grad({run(heads).square().sum()}, {heads})[0];
  };
  const at::Tensor expected = slopes([&](const at::Tensor& g) { return plain(batch, g); });
  const at::Tensor found = slopes([&](const at::Tensor& g) {
    GateSet set;
    set.heads = g;
    return model(batch, set);
  });
  EXPECT_TRUE(at::allclose(found, expected, 1e-8, 1e-8));
}

TEST_P(EncoderTest, RemovalIsAGateOfZeroAndRemembersWhatWas) {
  Encoder model = tiny_encoder(GetParam());
  const Batch batch = tiny_batch(GetParam());
  const std::string whole = model.fingerprint();
  GateSet set;
  set.heads = at::tensor({1, 0, 1, 0, 0, 1}, at::kDouble).reshape({2, 3});
  set.dropped_output = at::randn({2, 3, 12}, at::kDouble);
  set.neurons = at::rand({2, 40}, at::kDouble).gt(0.5).to(at::kDouble);
  set.attention_sublayers = at::tensor({1, 0}, at::kDouble);
  const at::Tensor expected = model(batch, set);
  EXPECT_EQ(model.base_fingerprint(), "");
  remove_units(model, set);
  EXPECT_TRUE(at::allclose(model(batch), expected, 1e-10, 1e-10));
  EXPECT_EQ(model.base_fingerprint(), whole);
  EXPECT_EQ(model.heads().layer_heads(0), (std::vector<int64_t>{0, 2}));
  EXPECT_FALSE(model.sublayers().attention[1]);
  EXPECT_TRUE(model.neurons().eq(set.neurons.ne(0)).all().item<bool>());
}

TEST_P(EncoderTest, InferenceModeAndThreadsShareAModel) {
  Encoder model = tiny_encoder(GetParam());
  const Batch batch = tiny_batch(GetParam());
  const at::Tensor expected = model(batch).detach();
  std::vector<at::Tensor> found(4);
  std::vector<std::thread> threads;
  for (at::Tensor& each : found) {
    threads.emplace_back([&] {
      const c10::InferenceMode inference;
      each = model(batch);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const at::Tensor& each : found) EXPECT_TRUE(at::equal(each, expected));
}

TEST_P(EncoderTest, DirectPathsCutWhatBlocksRead) {
  Encoder model = tiny_encoder(GetParam());
  const Batch batch = tiny_batch(GetParam());
  ModelState start = model.embed(batch);
  start.hidden = start.hidden.detach().set_requires_grad(true);
  const at::Tensor dense = model.head(model.run(start, 0, 2, {}));
  const auto direct = model.direct_paths();
  const ModelState last = model.run(start, 0, 2, {});
  const at::Tensor output = model.head(last);
  EXPECT_TRUE(at::allclose(output, dense, 1e-10, 1e-10));
  // Straight on: the stream of a pre-norm model adds and does nothing else.
  const at::Tensor by_start =
      torch::autograd::grad({last.hidden.sum()}, {start.hidden}, {}, true)[0];
  if (GetParam()) {
    EXPECT_TRUE(by_start.eq(1).all().item<bool>());
  }
  std::thread elsewhere([&] {
    const at::Tensor all =
        torch::autograd::grad({model.run(start, 0, 2, {}).hidden.sum()}, {start.hidden})[0];
    EXPECT_FALSE(at::allclose(all, by_start, 1e-3));
  });
  elsewhere.join();
}

INSTANTIATE_TEST_SUITE_P(Families, EncoderTest, ::testing::Bool(),
                         [](const auto& info) { return std::string(info.param ? "Vit" : "Bert"); });

TEST(EncoderTest, WeightsThatDoNotFitAreRefused) {
  const EncoderConfig config = EncoderConfig::from_json(kTinyBert);
  const auto refusal = [&](const std::string& name, const at::Tensor& value) {
    NamedWeights weights = tiny_weights(false);
    std::erase_if(weights, [&](const auto& each) { return each.first == name; });
    if (value.defined()) weights.emplace_back(name, value);
    try {
      const Encoder model(config, weights);
    } catch (const std::invalid_argument& error) {
      return std::string(error.what());
    }
    return std::string("nothing refused");
  };
  EXPECT_EQ(refusal("classifier.bias", {}),
            "[encoder] expected a weight 'classifier.bias' of shape [5]; found none");
  EXPECT_EQ(refusal("classifier.bias", at::zeros({2}, at::kDouble)),
            "[encoder] expected 'classifier.bias' of shape [5]; found shape [2]");
  EXPECT_EQ(refusal("classifier.bias", at::zeros({5})),
            "[encoder] expected all weights of dtype Double on cpu; found 'classifier.bias' of "
            "Float on cpu");
  NamedWeights twice = tiny_weights(false);
  twice.emplace_back("classifier.bias", at::zeros({5}, at::kDouble));
  EXPECT_THROW(Encoder(config, twice), std::invalid_argument);
  EXPECT_THROW(Encoder(config, tiny_weights(false), {.heads = HeadMask::all(2, 4)}),
               std::invalid_argument);
  EXPECT_THROW(Encoder(config, tiny_weights(false), {.neurons = at::ones({2, 40})}),
               std::invalid_argument);
  EXPECT_THROW(Encoder(config, tiny_weights(false), {.sublayers = {{true}, {}}}),
               std::invalid_argument);
}

}  // namespace
}  // namespace headkit
