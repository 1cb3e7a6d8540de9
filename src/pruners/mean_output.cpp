#include "headkit/pruners/mean_output.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <vector>

#include "distributed/measured_walk.h"
#include "headkit/core/error.h"

namespace headkit {
namespace {

constexpr char kName[] = "mean_head_outputs";

// 1 where a sample counts for a head: where the head is closed. [B, L, H], double, CPU.
at::Tensor closed_samples(const GateSet& gates, int64_t batch, const HeadLayout& layout) {
  if (!gates.heads.defined()) return at::zeros({batch, layout.layers, layout.heads}, at::kDouble);
  HEADKIT_CHECK(gates.heads.dim() <= 3, kName, "gates [L, H] or [B, L, H]", "shape ",
                gates.heads.sizes());
  gates.check(kName, batch, layout.layers, layout.heads);
  return gates.heads.detach()
      .to(at::kCPU)
      .eq(0)
      .to(at::kDouble)
      .expand({batch, layout.layers, layout.heads});
}

struct Sums {
  at::Tensor context;  // [L, H, dh]: sum of a_h over valid tokens
  at::Tensor tokens;   // [L, H]

  explicit Sums(const HeadLayout& layout)
      : context(at::zeros({layout.layers, layout.heads, layout.head_dim}, at::kDouble)),
        tokens(at::zeros({layout.layers, layout.heads}, at::kDouble)) {}

  void add(const at::Tensor& more_context, const at::Tensor& more_tokens) {
    context += more_context;
    tokens += more_tokens;
  }
};

}  // namespace

at::Tensor mean_head_outputs(GatedModel& model, const DataSource& data,
                             const MeanOutputOptions& options) {
  const c10::NoGradGuard no_grad;
  const auto mode = model.evaluating();
  const HeadLayout layout = model.layout();
  const HeadMask present = model.heads();
  // Sums over all samples and over those where a head is closed; whether the model is in float64.
  const auto measure = [&](const Batch& batch, int64_t) -> Measured {
    Sums all(layout), closed(layout);
    const ModelState state = model.embed(batch);
    const GateSet gates = options.decide ? options.decide(state) : options.gates;
    const int64_t examples = state.hidden.size(0);
    const at::Tensor is_closed = closed_samples(gates, examples, layout);
    Taps taps;
    taps.head_contexts = true;
    model.run(state, 0, layout.layers, gates, &taps);
    HEADKIT_CHECK(static_cast<int64_t>(taps.head_context.size()) == layout.layers &&
                      taps.valid.size() == taps.head_context.size(),
                  kName, "the head contexts of every attention block", taps.head_context.size(),
                  " of ", layout.layers);
    for (int64_t layer = 0; layer < layout.layers; ++layer) {
      const std::vector<int64_t> heads = present.layer_heads(layer);
      if (heads.empty()) continue;
      const at::Tensor context = taps.head_context[layer].to(at::kCPU, at::kDouble);
      at::Tensor valid = taps.valid[layer];  // bool [B, T]
      valid = valid.defined() ? valid.to(at::kCPU, at::kDouble)
                              : at::ones({examples, context.size(1)}, at::kDouble);
      const std::vector<int64_t> shape{examples, valid.size(1), static_cast<int64_t>(heads.size()),
                                       layout.head_dim};
      HEADKIT_CHECK(context.sizes() == at::IntArrayRef(shape), kName,
                    c10::str("a head context of shape ", at::IntArrayRef(shape)), "shape ",
                    context.sizes(), " in layer ", layer);
      const at::Tensor tokens = valid.sum(1);  // [B]
      const at::Tensor sum = at::einsum("bt,bthd->bhd", {valid, context});
      const at::Tensor index = at::tensor(heads, at::kLong);
      const at::Tensor share = is_closed.select(1, layer).index_select(1, index);  // [B, h]
      all.context[layer].index_add_(0, index, sum.sum(0));
      all.tokens[layer].index_add_(0, index, tokens.sum().expand({index.size(0)}));
      closed.context[layer].index_add_(0, index, (sum * share.unsqueeze(2)).sum(0));
      closed.tokens[layer].index_add_(0, index, at::mv(share.t(), tokens));
    }
    const bool wide = state.hidden.scalar_type() == at::kDouble;
    return {all.context, all.tokens, closed.context, closed.tokens, at::full({}, wide, at::kBool)};
  };
  Sums all(layout), closed(layout);
  at::ScalarType dtype = at::kFloat;
  for_each_measured(kName, data, options.progress, measure,
                    [&](const Batch&, const Measured& measured) {
                      all.add(measured[0], measured[1]);
                      closed.add(measured[2], measured[3]);
                      if (measured[4].item<bool>()) dtype = at::kDouble;
                    });

  const at::Tensor any_closed = closed.tokens.gt(0);
  const at::Tensor tokens = at::where(any_closed, closed.tokens, all.tokens);
  const at::Tensor context = at::where(any_closed.unsqueeze(2), closed.context, all.context) /
                             tokens.clamp_min(1).unsqueeze(2);
  HEADKIT_CHECK(present.count() == 0 || all.tokens.sum().item<double>() > 0, kName,
                "data with at least one token", "none");
  at::Tensor mean = at::zeros({layout.layers, layout.heads, layout.model_dim}, at::kDouble);
  for (int64_t layer = 0; layer < layout.layers; ++layer) {
    const std::vector<int64_t> heads = present.layer_heads(layer);
    const at::Tensor weight = model.attention(layer).o.detach().to(at::kCPU, at::kDouble);
    for (size_t place = 0; place < heads.size(); ++place) {
      const int64_t head = heads[place];
      const at::Tensor part =
          weight.narrow(1, static_cast<int64_t>(place) * layout.head_dim, layout.head_dim);
      mean[layer][head].copy_(at::mv(part, context[layer][head]));
    }
  }
  return mean.to(dtype);
}

}  // namespace headkit
