#include <ATen/ATen.h>

#include <vector>

#include "headkit/core/error.h"
#include "models/encoder_embeddings.h"
#include "models/layer_norm.h"

namespace headkit {
namespace {

const at::Tensor* find(const Batch& batch, const char* name) {
  const auto found = batch.find(name);
  return found == batch.end() ? nullptr : &found->second;
}

// Rows of a table, by whole numbers below its length. The row of padding takes no gradient.
at::Tensor rows(const at::Tensor& table, const at::Tensor& index, const char* name,
                int64_t padding = -1) {
  HEADKIT_CHECK(index.scalar_type() == at::kLong || index.scalar_type() == at::kInt, "embed",
                c10::str(name, " of int64 or int32"), index.scalar_type());
  if (index.device().is_cpu() && index.numel() > 0) {
    const auto [least, most] = at::aminmax(index);
    HEADKIT_CHECK(least.item<int64_t>() >= 0 && most.item<int64_t>() < table.size(0), "embed",
                  c10::str(name, " from 0 to ", table.size(0) - 1), least.item<int64_t>(), " to ",
                  most.item<int64_t>());
  }
  return at::embedding(table, index, padding);
}

class TokenEmbeddings final : public EncoderEmbeddings {
 public:
  TokenEmbeddings(const EncoderConfig& config, const EncoderFamily& family)
      : config_(config), counts_positions_(family.counts_positions), norm_(config.norm_eps) {
    inputs_ = {"input_ids", "attention_mask", "position_ids"};
    if (config.token_types > 0) inputs_.push_back("token_type_ids");
  }

  at::Tensor operator()(const Batch& batch, const at::Tensor& gate) const override {
    check(batch);
    const at::Tensor& ids = batch.at("input_ids");
    const int64_t padding = config_.padding_token;
    at::Tensor sum = rows(words_, ids, "input_ids", padding);
    if (config_.token_types > 0) {
      const at::Tensor* types = find(batch, "token_type_ids");
      sum = sum + rows(types_, types ? *types : at::zeros_like(ids), "token_type_ids");
    }
    const at::Tensor* positions = find(batch, "position_ids");
    sum = sum + rows(positions_, positions ? *positions : positions_of(ids), "position_ids",
                     counts_positions_ ? padding : -1);
    if (gate.defined()) sum = sum * gate.to(sum.options());
    return norm_(sum, gate);
  }

  at::Tensor attention_mask(const Batch& batch) const override {
    const at::Tensor* given = find(batch, "attention_mask");
    if (given == nullptr) return {};
    const at::Tensor mask = given->to(at::kBool);
    return mask.all().item<bool>() ? at::Tensor() : mask;
  }

  void visit(const std::string& prefix, const ParameterVisitor& visitor) override {
    const int64_t width = config_.layout.model_dim;
    const std::string path = prefix + "embeddings.";
    const auto show_positions = [&] {
      visitor(path + "position_embeddings.weight", positions_, {config_.positions, width});
    };
    visitor(path + "word_embeddings.weight", words_, {config_.vocabulary, width});
    if (!counts_positions_) show_positions();
    if (config_.token_types > 0) {
      visitor(path + "token_type_embeddings.weight", types_, {config_.token_types, width});
    }
    norm_.visit(path + "LayerNorm", width, visitor);
    if (counts_positions_) show_positions();
  }

 private:
  void check(const Batch& batch) const {
    check_inputs(batch, inputs_);
    const at::Tensor& ids = batch.at("input_ids");
    HEADKIT_CHECK(ids.dim() == 2, "embed", "input_ids of shape [batch, tokens]", "shape ",
                  ids.sizes());
    for (const std::string& name : inputs_) {
      const at::Tensor* given = find(batch, name.c_str());
      // Positions may be the same for all samples.
      const bool fits = given == nullptr || given->sizes() == ids.sizes() ||
                        (name == "position_ids" && given->dim() == 2 && given->size(0) == 1 &&
                         given->size(1) == ids.size(1));
      HEADKIT_CHECK(fits, "embed", c10::str(name, " of shape ", ids.sizes()), "shape ",
                    given->sizes());
    }
    const int64_t first = counts_positions_ ? config_.padding_token + 1 : 0;
    HEADKIT_CHECK(ids.size(1) + first <= config_.positions, "embed",
                  c10::str("at most ", config_.positions - first, " tokens"), ids.size(1));
  }

  at::Tensor positions_of(const at::Tensor& ids) const {
    if (!counts_positions_) {
      return at::arange(ids.size(1), ids.options().dtype(at::kLong)).unsqueeze(0);
    }
    const at::Tensor token = ids.ne(config_.padding_token).to(at::kLong);
    return token.cumsum(1) * token + config_.padding_token;
  }

  EncoderConfig config_;
  bool counts_positions_;
  std::vector<std::string> inputs_;
  at::Tensor words_, positions_, types_;
  LayerNorm norm_;
};

}  // namespace

std::unique_ptr<EncoderEmbeddings> make_token_embeddings(const EncoderConfig& config,
                                                         const EncoderFamily& family) {
  return std::make_unique<TokenEmbeddings>(config, family);
}

}  // namespace headkit
