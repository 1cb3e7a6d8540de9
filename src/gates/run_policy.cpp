#include "headkit/gates/run_policy.h"

#include <ATen/ATen.h>

#include "headkit/core/error.h"
#include "headkit/core/flops.h"
#include "headkit/gates/calibrated_policy.h"
#include "headkit/gates/escalation.h"
#include "headkit/gates/layer_gate.h"

namespace headkit {

PolicyRun run_policy(GatedModel& model, const Batch& batch, const GatePolicy& policy,
                     const RunOptions& options) {
  if (const auto* escalation = dynamic_cast<const Escalation*>(&policy)) {
    return escalation->run(model, batch, options);
  }
  if (const auto* calibrated = dynamic_cast<const CalibratedPolicy*>(&policy)) {
    return calibrated->run(model, batch, options);
  }
  const HeadLayout layout = model.layout();
  const HeadMask present = model.heads();
  const ModelState embedded = model.embed(batch);
  const int64_t samples = embedded.hidden.size(0);

  const std::unique_ptr<GatePolicy::State> state = policy.start();
  state->record = options.record;
  state->next_input = options.first_input;
  state->layout = layout;
  state->present = present;
  state->weights_sha256 = options.weights_sha256;

  const auto* layered = dynamic_cast<const LayerGate*>(&policy);
  const std::vector<int64_t> decisions =
      layered != nullptr ? layered->decision_layers() : std::vector<int64_t>{0};
  PolicyRun run;
  ModelState reached = embedded;
  for (size_t i = 0; i < decisions.size(); ++i) {
    const GateSet gates =
        policy.decide({decisions[i], reached.hidden, reached.attention_mask}, *state);
    HEADKIT_CHECK(gates.heads.defined() && gates.heads.dim() == 3, "run_policy",
                  "a policy that gives gates of shape [batch, layers, heads]", policy.name());
    gates.check("run_policy", samples, layout.layers, layout.heads);
    if (i == 0) {
      run.gates = gates;
    } else {
      run.gates.heads = at::cat(
          {run.gates.heads.slice(1, 0, decisions[i]), gates.heads.slice(1, decisions[i])}, 1);
    }
    const int64_t end = i + 1 < decisions.size() ? decisions[i + 1] : layout.layers;
    reached = model.run(reached, decisions[i], end, gates);
  }
  run.output = model.head(reached);
  const at::Tensor active = (run.gates.heads.cpu() != 0).logical_and(present.keep());
  run.heads_run = active.sum({1, 2}, false, at::kLong);
  run.kv_heads_run = active_kv_heads(layout, active);
  run.layers_run = at::full({samples}, layout.layers, at::kLong);
  run.records = std::move(state->records);
  return run;
}

at::Tensor run_flops(const HeadLayout& layout, const PolicyRun& run, const at::Tensor& tokens) {
  HEADKIT_CHECK(tokens.dim() == 1 && tokens.size(0) == run.heads_run.size(0), "run_flops",
                c10::str("tokens of ", run.heads_run.size(0), " samples"), "shape ",
                tokens.sizes());
  const at::Tensor length = tokens.cpu().to(at::kLong).contiguous();
  at::Tensor flops = at::empty({length.size(0)}, at::kDouble);
  for (int64_t b = 0; b < length.size(0); ++b) {
    const int64_t count = length.const_data_ptr<int64_t>()[b];
    flops.mutable_data_ptr<double>()[b] =
        attention_flops(layout, static_cast<double>(run.heads_run.const_data_ptr<int64_t>()[b]),
                        count, static_cast<double>(run.kv_heads_run.const_data_ptr<int64_t>()[b])) +
        static_cast<double>(run.layers_run.const_data_ptr<int64_t>()[b]) *
            feed_forward_flops(layout, count);
  }
  return flops;
}

}  // namespace headkit
