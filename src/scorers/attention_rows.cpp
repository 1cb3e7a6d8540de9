#include "scorers/attention_rows.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>

#include "headkit/attention/pair_statistics.h"
#include "headkit/core/error.h"

namespace headkit {
namespace {

constexpr double kNoKey = -1e4;  // a bias that no score makes up for: exp underflows

// bool [B, N] without its first or last true entry.
at::Tensor without_token(const at::Tensor& valid, LeftOutToken left_out) {
  if (left_out == LeftOutToken::kNone || valid.size(1) == 0) return valid;
  const at::Tensor order = valid.to(at::kLong).cumsum(1);
  const at::Tensor place =
      left_out == LeftOutToken::kFirst ? at::ones_like(order.slice(1, 0, 1)) : order.slice(1, -1);
  return valid.logical_and(order.eq(place).logical_and(valid).logical_not());
}

at::Tensor padding_of(const AttentionBlockCall& call) {
  const AttentionInput& input = call.input;
  if (input.key_padding_mask_) return *input.key_padding_mask_;
  const at::Tensor& source = input.kv_ ? *input.kv_ : call.x;
  return at::ones({source.size(0), source.size(1)}, source.options().dtype(at::kBool));
}

// [B, 1 or h, T]: how many keys with padding `seen` [B, S] each query may see.
at::Tensor keys_seen(const AttentionBlockCall& call, const at::Tensor& seen) {
  const AttentionInput& input = call.input;
  const int64_t queries = call.x.size(1), keys = seen.size(1);
  const at::Tensor query = at::arange(queries, seen.options().dtype(at::kLong));
  const int64_t window = input.window_ ? std::min(*input.window_, queries + keys) : queries + keys;
  // Of each query the keys from `first` to before `last`.
  const at::Tensor at_key = query + input.query_offset_;
  const at::Tensor first = (at_key - (window - 1)).clamp(0, keys);
  const at::Tensor last = (at_key + (input.is_causal_ ? 1 : window)).clamp(0, keys);
  if (!input.attn_bias_) {
    const at::Tensor below = at::constant_pad_nd(seen.to(at::kLong).cumsum(1), {1, 0});
    return (below.index_select(1, last) - below.index_select(1, first)).unsqueeze(1);
  }
  const at::Tensor key = at::arange(keys, query.options());
  const at::Tensor near =
      key.unsqueeze(0).ge(first.unsqueeze(1)).logical_and(key.unsqueeze(0).lt(last.unsqueeze(1)));
  return input.attn_bias_->gt(kNoKey)
      .logical_and(near)
      .logical_and(seen.unsqueeze(1).unsqueeze(2))
      .sum(-1);
}

}  // namespace

AttentionRows attention_rows(const AttentionBlockCall& call, LeftOutToken left_out) {
  AttentionBlockCall dense = call;
  dense.input.gate_.reset();
  dense.input.dropped_output_.reset();
  const at::Tensor seen = without_token(padding_of(call), left_out);
  if (left_out != LeftOutToken::kNone) dense.input.key_padding_mask(seen);
  const PairStatistics found =
      pair_statistics(dense.x, dense.weights, dense.num_heads, dense.input);
  const auto on_cpu = [](const at::Tensor& tensor) { return tensor.to(at::kCPU, at::kDouble); };
  return {on_cpu(found.entropy), on_cpu(found.largest_weight), on_cpu(found.log_sum_exp),
          on_cpu(keys_seen(dense, seen))};
}

at::Tensor valid_queries(const at::Tensor& valid, const at::Tensor& x, LeftOutToken left_out) {
  const at::Tensor all = valid.defined()
                             ? valid.to(at::kCPU)
                             : at::ones({x.size(0), x.size(1)}, at::TensorOptions(at::kBool));
  return without_token(all, left_out);
}

int64_t for_each_run(const char* metric, GatedModel& model, const DataSource& data,
                     const Taps& taps, const Progress& progress,
                     const std::function<Measured(const Batch& batch, const Taps& seen)>& measure,
                     const std::function<void(const Measured& measured)>& take) {
  const c10::NoGradGuard no_grad;
  const auto mode = model.evaluating();
  const auto layers = static_cast<size_t>(model.layout().layers);
  const int64_t examples = for_each_measured(
      metric, data, progress,
      [&](const Batch& batch, int64_t) {
        Taps seen = taps;
        model.run(model.embed(batch), 0, static_cast<int64_t>(layers), {}, &seen);
        const size_t shown =
            taps.attention_calls ? seen.attention_call.size() : seen.head_context.size();
        HEADKIT_CHECK(shown == layers && seen.valid.size() == layers, metric,
                      taps.attention_calls ? "a model that shows the calls of all attention blocks"
                                           : "a model that shows the heads of all attention blocks",
                      shown, " of ", layers);
        return measure(batch, seen);
      },
      [&](const Batch&, const Measured& measured) { take(measured); });
  HEADKIT_CHECK(examples > 0, metric, "data with at least one example", "none");
  return examples;
}

}  // namespace headkit
