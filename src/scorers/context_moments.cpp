#include "scorers/context_moments.h"

#include <ATen/ATen.h>

#include "headkit/core/error.h"
#include "scorers/attention_rows.h"

namespace headkit {

int64_t for_each_context(
    const char* metric, GatedModel& model, const DataSource& data, const Progress& progress,
    const std::function<Measured(int64_t examples)>& begin,
    const std::function<void(int64_t layer, const std::vector<int64_t>& heads,
                             const at::Tensor& context, const at::Tensor& valid,
                             const Measured& room)>& visit,
    const std::function<void(const Measured& measured)>& take) {
  const HeadLayout layout = model.layout();
  const HeadMask present = model.heads();
  double tokens = 0;
  const int64_t all_examples = for_each_run(
      metric, model, data, {.head_contexts = true}, progress,
      [&](const Batch& batch, const Taps& seen) {
        const int64_t examples = batch_size(batch);
        double counted = 0;
        Measured room = begin(examples);
        for (int64_t layer = 0; layer < layout.layers; ++layer) {
          const std::vector<int64_t> heads = present.layer_heads(layer);
          if (heads.empty()) continue;
          const at::Tensor context = seen.head_context[layer].to(at::kCPU, at::kDouble);
          const at::Tensor valid = seen.valid[layer].defined()
                                       ? seen.valid[layer].to(at::kCPU, at::kDouble)
                                       : at::ones({examples, context.size(1)}, at::kDouble);
          const std::vector<int64_t> shape{examples, valid.size(1),
                                           static_cast<int64_t>(heads.size()), layout.head_dim};
          HEADKIT_CHECK(context.sizes() == at::IntArrayRef(shape), metric,
                        c10::str("head outputs of shape ", at::IntArrayRef(shape)), "shape ",
                        context.sizes(), " in layer ", layer);
          counted += valid.sum().item<double>();
          visit(layer, heads, context, valid, room);
        }
        room.push_back(at::full({}, counted, at::kDouble));
        return room;
      },
      [&](const Measured& measured) {
        tokens += measured.back().item<double>();
        take(measured);
      });
  HEADKIT_CHECK(tokens > 0 || present.count() == 0, metric, "data with at least one token", "none");
  return all_examples;
}

at::Tensor output_slices(GatedModel& model, int64_t layer) {
  const at::Tensor o = model.attention(layer).o.detach().to(at::kCPU, at::kDouble);
  return o.reshape({o.size(0), -1, model.layout().head_dim}).transpose(0, 1);
}

ContextMoments context_moments(const char* metric, GatedModel& model, const DataSource& data,
                               const Progress& progress) {
  const HeadLayout layout = model.layout();
  std::vector<at::Tensor> tokens, means, deviations;
  for_each_context(
      metric, model, data, progress,
      [&](int64_t examples) -> Measured {
        const std::vector<int64_t> shape{examples, layout.layers, layout.heads, layout.head_dim};
        return {at::zeros({examples, layout.layers}, at::kDouble), at::zeros(shape, at::kDouble),
                at::zeros(shape, at::kDouble)};
      },
      [&](int64_t layer, const std::vector<int64_t>& heads, const at::Tensor& context,
          const at::Tensor& valid, const Measured& room) {
        const at::Tensor index = at::tensor(heads, at::kLong);
        const at::Tensor count = valid.sum(1);
        const at::Tensor mean =
            at::einsum("bt,bthd->bhd", {valid, context}) / count.clamp_min(1).reshape({-1, 1, 1});
        const at::Tensor off = context - mean.unsqueeze(1);
        room[0].select(1, layer).copy_(count);
        room[1].select(1, layer).index_copy_(1, index, mean);
        room[2].select(1, layer).index_copy_(1, index,
                                             at::einsum("bt,bthd->bhd", {valid, off.square()}));
      },
      [&](const Measured& measured) {
        tokens.push_back(measured[0]);
        means.push_back(measured[1]);
        deviations.push_back(measured[2]);
      });
  return {at::cat(tokens), at::cat(means), at::cat(deviations)};
}

}  // namespace headkit
