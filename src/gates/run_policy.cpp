#include "headkit/gates/run_policy.h"

#include <ATen/ATen.h>

#include "gates/units_there.h"
#include "headkit/core/error.h"
#include "headkit/core/flops.h"

namespace headkit {
namespace {

constexpr auto kOperation = "run_policy";

// Rows < `layer` of `before` and the others of `after`, where either is undefined `missing`;
// [samples, L, n] for gates, [L, n, D] for what closed units add.
at::Tensor joined(const at::Tensor& before, const at::Tensor& after, int64_t layer,
                  std::optional<int64_t> samples, double missing) {
  if (!before.defined() && !after.defined()) return {};
  const auto whole = [&](const at::Tensor& one, const at::Tensor& other) {
    const at::Tensor values = one.defined() ? one : at::full_like(other, missing);
    if (!samples || values.dim() == 3) return values;
    return values.unsqueeze(0).expand({*samples, values.size(0), values.size(1)});
  };
  const int64_t axis = samples ? 1 : 0;
  const at::Tensor first = whole(before, after), second = whole(after, before);
  return at::cat({first.slice(axis, 0, layer), second.slice(axis, layer)}, axis);
}

void check_units(const GateSet& gates) {
  HEADKIT_CHECK((!gates.heads.defined() || gates.heads.dim() <= 3) && !gates.neurons.defined() &&
                    !gates.attention_sublayers.defined() &&
                    !gates.feed_forward_sublayers.defined() && !gates.hidden.defined(),
                kOperation,
                "decisions of heads and blocks of neurons, for policies that decide in parts or "
                "more than once",
                "gates by token or of other units");
}

// Runs the samples of one batch part by part, as a policy decides.
class Walk {
 public:
  Walk(GatedModel& model, const GatePolicy& policy, GatePolicy::State& state)
      : model_(model),
        policy_(policy),
        state_(state),
        layers_(model.layout().layers),
        decisions_(policy.decision_layers()) {
    HEADKIT_CHECK(!decisions_.empty() && decisions_.front() == 0, kOperation,
                  "a policy that decides before layer 0 first", policy.name());
    for (size_t i = 1; i < decisions_.size(); ++i) {
      HEADKIT_CHECK(decisions_[i - 1] < decisions_[i] && decisions_[i] < layers_, kOperation,
                    c10::str("ascending decision layers below ", layers_), decisions_[i]);
    }
  }

  // Output and gates of a batch; its samples in their order.
  std::pair<at::Tensor, GateSet> run(const ModelState& at, const GateSet& before, size_t decision) {
    const int64_t samples = at.hidden.size(0), layer = decisions_[decision];
    const std::vector<GatePolicy::Part> parts =
        policy_.decide_parts({layer, at.hidden, at.attention_mask, &model_}, state_);
    if (parts.size() == 1) return run_part(at, before, parts.front().gates, decision);
    at::Tensor output;
    GateSet gates;
    int64_t held = 0;
    for (const GatePolicy::Part& part : parts) {
      held += part.samples.size(0);
      if (part.samples.size(0) == 0) continue;
      const auto [own_output, own_gates] =
          run_part(model_.select(at, part.samples), before.select_samples(part.samples), part.gates,
                   decision);
      const at::Tensor index = part.samples.to(own_output.device());
      if (!output.defined()) {
        std::vector<int64_t> shape = own_output.sizes().vec();
        shape[0] = samples;
        output = at::empty(shape, own_output.options());
      }
      output.index_copy_(0, index, own_output);
      place(gates.heads, own_gates.heads, part.samples, samples);
      place(gates.blocks, own_gates.blocks, part.samples, samples);
    }
    HEADKIT_CHECK(held == samples && output.defined(), kOperation,
                  c10::str("parts that hold ", samples, " samples"), held);
    return {output, gates};
  }

 private:
  std::pair<at::Tensor, GateSet> run_part(const ModelState& at, const GateSet& before,
                                          const GateSet& decided, size_t decision) {
    const int64_t samples = at.hidden.size(0), layer = decisions_[decision];
    HEADKIT_CHECK(decided.heads.defined() && (decided.heads.dim() == 2 || decided.heads.dim() == 3),
                  kOperation, "a policy that gives gates of shape [batch, layers, heads]",
                  policy_.name());
    model_.check(kOperation, samples, decided);
    GateSet gates = decided;
    if (layer > 0 || decided.heads.dim() == 2) {
      check_units(decided);
      gates = join_gates(layer > 0 ? before : decided, decided, layer, samples);
    }
    const bool last = decision + 1 == decisions_.size();
    const int64_t end = last ? layers_ : decisions_[decision + 1];
    const ModelState next = model_.run(at, layer, end, decided);
    if (last) return {model_.head(next), gates};
    return run(next, gates, decision + 1);
  }

  static void place(at::Tensor& all, const at::Tensor& some, const at::Tensor& samples,
                    int64_t count) {
    if (!some.defined() && !all.defined()) return;
    if (!all.defined()) {
      all = at::ones({count, some.size(1), some.size(2)}, some.options());
    }
    if (some.defined()) all.index_copy_(0, samples.to(all.device()), some);
  }

  GatedModel& model_;
  const GatePolicy& policy_;
  GatePolicy::State& state_;
  int64_t layers_;
  std::vector<int64_t> decisions_;
};

}  // namespace

std::vector<GatePolicy::Part> GatePolicy::decide_parts(const GateInput& input, State& state) const {
  GateSet gates = decide(input, state);
  return {{at::arange(input.hidden.size(0), at::kLong), std::move(gates)}};
}

PolicyRun GatePolicy::run(GatedModel& model, const Batch& batch, const RunOptions& options) const {
  const UnitsThere there(model);
  const HeadLayout& layout = there.layout();
  const ModelState embedded = model.embed(batch);
  const int64_t samples = embedded.hidden.size(0);

  const std::unique_ptr<State> state = start();
  state->record = options.record;
  state->next_input = options.first_input;
  state->layout = layout;
  state->present = there.heads();
  state->weights_sha256 = options.weights_sha256;
  state->neurons = static_cast<double>(there.neurons().sum().item<int64_t>());

  PolicyRun run;
  std::tie(run.output, run.gates) = Walk(model, *this, *state).run(embedded, {}, 0);
  const at::Tensor blocks =
      run.gates.blocks.defined()
          ? (run.gates.blocks.detach().to(at::kCPU) != 0)
                .expand({samples, run.gates.blocks.size(-2), run.gates.blocks.size(-1)})
          : at::Tensor();
  const UnitsThere::Counts counts =
      there.count_samples(run.gates.heads.detach().to(at::kCPU) != 0, blocks);
  run.heads_run = counts.heads;
  run.kv_heads_run = counts.kv_heads;
  run.neurons_run = counts.neurons;
  run.layers_run = at::full({samples}, layout.layers, at::kLong);
  run.decision_flops = state->decision_flops;
  run.records = std::move(state->records);
  return run;
}

PolicyRun run_policy(GatedModel& model, const Batch& batch, const GatePolicy& policy,
                     const RunOptions& options) {
  return policy.run(model, batch, options);
}

GateSet join_gates(const GateSet& before, const GateSet& after, int64_t layer, int64_t samples) {
  check_units(before);
  check_units(after);
  GateSet gates;
  gates.heads = joined(before.heads, after.heads, layer, samples, 1);
  gates.dropped_output = joined(before.dropped_output, after.dropped_output, layer, {}, 0);
  gates.blocks = joined(before.blocks, after.blocks, layer, samples, 1);
  gates.dropped_blocks = joined(before.dropped_blocks, after.dropped_blocks, layer, {}, 0);
  HEADKIT_CHECK(!gates.blocks.defined() || !gates.heads.defined() ||
                    gates.blocks.size(1) == gates.heads.size(1),
                kOperation, "a feed-forward block in each layer, for gates that are decided midway",
                gates.blocks.sizes());
  gates.skip = before.skip && after.skip;
  return gates;
}

at::Tensor run_flops(const HeadLayout& layout, const PolicyRun& run, const at::Tensor& tokens) {
  HEADKIT_CHECK(tokens.dim() == 1 && tokens.size(0) == run.heads_run.size(0), "run_flops",
                c10::str("tokens of ", run.heads_run.size(0), " samples"), "shape ",
                tokens.sizes());
  const at::Tensor length = tokens.cpu().to(at::kLong).contiguous();
  at::Tensor flops = at::empty({length.size(0)}, at::kDouble);
  const auto of = [](const at::Tensor& counts, int64_t b) {
    return static_cast<double>(counts.const_data_ptr<int64_t>()[b]);
  };
  for (int64_t b = 0; b < length.size(0); ++b) {
    flops.mutable_data_ptr<double>()[b] =
        unit_flops(layout, {of(run.heads_run, b), of(run.kv_heads_run, b), of(run.neurons_run, b)},
                   of(length, b));
  }
  if (run.decision_flops.defined()) flops += run.decision_flops;
  return flops;
}

}  // namespace headkit
