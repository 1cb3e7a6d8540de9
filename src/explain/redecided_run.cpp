#include "explain/redecided_run.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "headkit/core/error.h"
#include "headkit/gates/run_policy.h"

namespace headkit {
namespace {

constexpr auto kOperation = "redecide";

int64_t next_decision(const GatePolicy& policy, int64_t layer, int64_t layers) {
  for (const int64_t each : policy.decision_layers()) {
    if (each > layer) return each;
  }
  return layers;
}

}  // namespace

std::unique_ptr<GatePolicy::State> policy_state(GatedModel& model, const GatePolicy& policy) {
  std::unique_ptr<GatePolicy::State> state = policy.start();
  state->layout = model.layout();
  state->present = model.heads();
  return state;
}

RedecidedRun run_redecided(GatedModel& model, const GatePolicy& policy, GatePolicy::State& state,
                           const ModelState& start, const GateSet& gates, bool ask) {
  const c10::NoGradGuard no_grad;
  const int64_t samples = start.hidden.size(0), layers = model.layout().layers;
  if (ask) {
    const std::vector<GatePolicy::Part> parts =
        policy.decide_parts({start.layer, start.hidden, start.attention_mask}, state);
    RedecidedRun all;
    for (const GatePolicy::Part& part : parts) {
      const int64_t count = part.samples.size(0);
      if (count == 0) continue;
      const GateSet joined =
          start.layer == 0 && part.gates.heads.dim() == 3
              ? part.gates
              : join_gates(start.layer == 0 ? part.gates : gates.select_samples(part.samples),
                           part.gates, start.layer, count);
      model.check(kOperation, count, joined);
      if (count == samples) {
        // The only part: samples may still be in another order.
        const RedecidedRun own = run_redecided(
            model, policy, state, model.select(start, part.samples), joined, /*ask=*/false);
        const at::Tensor back = part.samples.argsort();
        return {own.output.index_select(0, back.to(own.output.device())),
                own.gates.select_samples(back.to(own.gates.heads.device()))};
      }
      const RedecidedRun own = run_redecided(
          model, policy, state, model.select(start, part.samples), joined, /*ask=*/false);
      if (!all.output.defined()) {
        std::vector<int64_t> shape = own.output.sizes().vec();
        shape[0] = samples;
        all.output = at::empty(shape, own.output.options());
        all.gates.heads =
            at::empty({samples, layers, own.gates.heads.size(2)}, own.gates.heads.options());
      }
      all.output.index_copy_(0, part.samples.to(own.output.device()), own.output);
      all.gates.heads.index_copy_(0, part.samples.to(own.gates.heads.device()), own.gates.heads);
    }
    HEADKIT_CHECK(all.output.defined(), kOperation, "a policy that decides for each sample",
                  policy.name());
    return all;
  }
  const int64_t next = next_decision(policy, start.layer, layers);
  const ModelState reached = model.run(start, start.layer, next, gates);
  if (next == layers) return {model.head(reached), gates};
  return run_redecided(model, policy, state, reached, gates, /*ask=*/true);
}

}  // namespace headkit
