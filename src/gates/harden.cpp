#include "headkit/gates/harden.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <c10/core/GradMode.h>

#include <cmath>

#include "core/json.h"
#include "gates/fitting.h"
#include "headkit/core/error.h"

namespace headkit {

std::string HardenedGates::to_json() const {
  return Json{{"dense_loss", dense_loss},
              {"sampled_loss", sampled_loss},
              {"sampled_deviation", sampled_deviation},
              {"soft_loss", soft_loss},
              {"hard_loss", hard_loss},
              {"draws", draws},
              {"examples", examples},
              {"heads_kept", heads.count()},
              {"gates", Json::parse(description)}}
      .dump();
}

HardenedGates harden(GatedModel& model, const LearnedGates& gates, const DataSource& data,
                     const Objective& objective, const HardenOptions& options) {
  HEADKIT_CHECK(options.draws >= 1, "harden", "at least one draw", options.draws);
  model.check("harden", -1, gates.hard());
  const c10::NoGradGuard no_grad;
  const auto mode = model.evaluating();
  const HeadLayout layout = model.layout();

  HardenedGates found;
  found.gates = gates.hard();
  found.heads = found.gates.heads.defined() ? HeadMask(found.gates.heads != 0)
                                            : HeadMask::all(layout.layers, layout.heads);
  found.heads = found.heads.intersect(model.heads());
  found.description = gates.describe(options.step);
  found.draws = options.draws;

  const at::Generator generator = at::detail::createCPUGenerator(options.seed);
  const GateSet soft = gates.soft(options.step);
  std::vector<double> sampled(options.draws, 0.0);
  int64_t batches = 0;
  data.for_each([&](const Batch& batch) {
    const int64_t examples = batch_size(batch);
    if (examples > 0) {
      const ModelState state = model.embed(batch);
      const auto output_under = [&](const GateSet& set) {
        return model.head(model.run(state, 0, layout.layers, fitting(set, state.hidden)));
      };
      const at::Tensor dense = output_under({});
      const auto loss_of = [&](const at::Tensor& output) {
        return objective.loss(output, batch, objective.needs_dense() ? dense : at::Tensor())
            .to(at::kDouble)
            .sum()
            .item<double>();
      };
      found.dense_loss += loss_of(dense);
      found.soft_loss += loss_of(output_under(soft));
      found.hard_loss += loss_of(output_under(found.gates));
      for (int64_t i = 0; i < options.draws; ++i) {
        sampled[i] += loss_of(output_under(gates.sample(options.step, examples, generator)));
      }
      found.examples += examples;
    }
    if (options.progress) options.progress(++batches, data.size().value_or(-1));
  });
  HEADKIT_CHECK(found.examples > 0, "harden", "data with at least one example", "none");

  const auto total = static_cast<double>(found.examples);
  found.dense_loss /= total;
  found.soft_loss /= total;
  found.hard_loss /= total;
  const at::Tensor means = at::tensor(sampled, at::kDouble) / total;
  found.sampled_loss = means.mean().item<double>();
  found.sampled_deviation = options.draws > 1 ? means.std().item<double>() : 0;
  return found;
}

}  // namespace headkit
