#include "headkit/gates/static_stage.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "distributed/measured_walk.h"
#include "gates/gate_gradients.h"
#include "headkit/core/error.h"

namespace headkit {
namespace {

constexpr auto kOperation = "static_stage";

std::string described(const at::Tensor& t) {
  return t.defined() ? c10::str(t.scalar_type(), " of shape ", t.sizes()) : "none";
}

at::Tensor presence(const at::Tensor& present, at::IntArrayRef shape) {
  if (!present.defined()) return at::ones(shape, at::kBool);
  HEADKIT_CHECK(present.sizes() == shape && present.scalar_type() == at::kBool, kOperation,
                c10::str("bool units that are present, of shape ", shape), described(present));
  return present.cpu();
}

}  // namespace

InputImportance input_importance(GatedModel& model, const DataSource& data,
                                 const Objective& objective,
                                 const InputImportanceOptions& options) {
  constexpr auto kOperation = "input_importance";
  check_has_gradient(kOperation, objective);
  const auto mode = model.evaluating();
  std::vector<at::Tensor> heads, blocks;
  for_each_measured(
      kOperation, data, options.progress,
      [&](const Batch& batch, int64_t) -> Measured {
        const c10::NoGradGuard no_grad;
        const GateGradients found =
            gate_gradients(model, model.embed(batch), batch, objective, options.dropped_output,
                           options.dropped_blocks, options.blocks, {}, {});
        return {found.heads, found.blocks};
      },
      [&](const Batch&, const Measured& measured) {
        heads.push_back(measured[0]);
        if (options.blocks) blocks.push_back(measured[1]);
      });
  HEADKIT_CHECK(!heads.empty(), kOperation, "data with at least one example", "none");
  return {at::cat(heads), blocks.empty() ? at::Tensor() : at::cat(blocks)};
}

at::Tensor needed_units(const at::Tensor& importance, double mean_units,
                        const at::Tensor& present) {
  HEADKIT_CHECK(importance.defined() && importance.dim() == 3 && importance.size(0) > 0 &&
                    importance.scalar_type() == at::kDouble && importance.is_cpu() &&
                    importance.isfinite().all().item<bool>() && importance.ge(0).all().item<bool>(),
                kOperation, "finite float64 importance >= 0 of shape [inputs, layers, units]",
                described(importance));
  const at::Tensor there = presence(present, importance.sizes().slice(1)).flatten();
  const int64_t units = there.sum().item<int64_t>(), samples = importance.size(0);
  HEADKIT_CHECK(mean_units >= 0 && mean_units <= static_cast<double>(units), kOperation,
                c10::str("mean_units from 0 to ", units), mean_units);
  const double epsilon = std::max(1e-300, 0.01 * importance.mean().item<double>());
  const at::Tensor place = there.nonzero().flatten();
  const at::Tensor logs =
      (importance + epsilon).log().reshape({samples, -1}).index_select(1, place);
  const at::Tensor relative = logs - logs.mean(1, true);
  const auto count = static_cast<int64_t>(std::floor(mean_units * static_cast<double>(samples)));
  at::Tensor needed = at::zeros({samples, there.numel()}, at::kBool);
  if (count > 0) {
    const double threshold =
        std::get<0>(relative.flatten().sort(true, 0, true))[count - 1].item<double>();
    needed.index_copy_(1, place, relative >= threshold);
  }
  return needed.reshape(importance.sizes());
}

StaticStage static_stage(const at::Tensor& needed, double settled_share,
                         const at::Tensor& present) {
  HEADKIT_CHECK(needed.defined() && needed.dim() == 3 && needed.size(0) > 0 &&
                    needed.scalar_type() == at::kBool,
                kOperation, "bool needs of shape [inputs, layers, units]", described(needed));
  HEADKIT_CHECK(settled_share >= 0 && settled_share < 0.5, kOperation, "settled_share in [0, 0.5)",
                settled_share);
  const at::Tensor there = presence(present, needed.sizes().slice(1));
  StaticStage stage;
  stage.need = needed.cpu().logical_and(there).to(at::kDouble).mean(0);
  stage.fixed = at::zeros(stage.need.sizes(), at::kChar)
                    .masked_fill(stage.need >= 1 - settled_share, 1)
                    .masked_fill(stage.need <= settled_share, -1)
                    .masked_fill(there.logical_not(), -1);
  stage.pruned = stage.fixed.eq(-1).sum().item<int64_t>();
  stage.always_on = stage.fixed.eq(1).sum().item<int64_t>();
  stage.contested = stage.fixed.eq(0).sum().item<int64_t>();
  return stage;
}

}  // namespace headkit
