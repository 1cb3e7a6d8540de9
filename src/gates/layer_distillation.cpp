#include "headkit/gates/layer_distillation.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <limits>

#include "headkit/core/error.h"
#include "headkit/models/objective.h"

namespace headkit {
namespace {

constexpr auto kOperation = "layer_distillation";

// Mean square over valid tokens and dimensions; padding must not count.
at::Tensor mean_square(const at::Tensor& difference, const at::Tensor& valid) {
  const at::Tensor square = difference.square().mean(-1);
  if (!valid.defined()) return square.mean();
  const at::Tensor weight = valid.to(square.options());
  return (square * weight).sum() / weight.sum().clamp_min(1);
}

// Hidden states after each layer, and the outputs.
struct Course {
  std::vector<at::Tensor> hidden;
  at::Tensor output;
  at::Tensor valid;
};

Course run_by_layer(GatedModel& model, ModelState state, const GateSet& gates) {
  Course course;
  const int64_t layers = model.layout().layers;
  for (int64_t layer = 0; layer < layers; ++layer) {
    state = model.run(state, layer, layer + 1, gates);
    course.hidden.push_back(state.hidden);
  }
  course.valid = state.attention_mask;
  course.output = model.head(state);
  return course;
}

}  // namespace

std::vector<int64_t> match_layers(const at::Tensor& distance, LayerMatching matching,
                                  const std::vector<bool>& open) {
  HEADKIT_CHECK(distance.dim() == 2 && static_cast<int64_t>(open.size()) == distance.size(1),
                kOperation, "distances [teacher layers, student layers] and a flag for each",
                distance.sizes(), " and ", open.size());
  const at::Tensor values = distance.detach().to(at::kCPU, at::kDouble).contiguous();
  const int64_t teachers = values.size(0), students = values.size(1);
  const double* const value = values.const_data_ptr<double>();
  std::vector<int64_t> matched(teachers, -1);
  int64_t below = students;
  for (int64_t t = teachers - 1; t >= 0; --t) {
    double best = std::numeric_limits<double>::infinity();
    const int64_t end = matching == LayerMatching::kOrdered ? below : students;
    for (int64_t s = 0; s < end; ++s) {
      if (matching == LayerMatching::kOrdered && !open[s]) continue;
      if (value[t * students + s] < best) {
        best = value[t * students + s];
        matched[t] = s;
      }
    }
    if (matched[t] >= 0) below = matched[t];
  }
  return matched;
}

LayerDistillation::LayerDistillation(LayerDistillationSettings settings)
    : settings_(std::move(settings)) {
  HEADKIT_CHECK(settings_.model_dim >= 1, kOperation, "a model_dim of at least 1",
                settings_.model_dim);
  HEADKIT_CHECK(
      settings_.layer_weight >= 0 && settings_.prediction_weight >= 0 && settings_.temperature > 0,
      kOperation, "weights of at least 0 and a temperature above 0", settings_.layer_weight, ", ",
      settings_.prediction_weight, " and ", settings_.temperature);
  int64_t before = 0;
  for (int64_t layer : settings_.teacher_layers) {
    HEADKIT_CHECK(layer > before, kOperation, "ascending teacher layers from 1", layer, " after ",
                  before);
    before = layer;
  }
  projection_ = at::eye(settings_.model_dim, at::kFloat).set_requires_grad(true);
}

at::Tensor LayerDistillation::layer_loss(const std::vector<at::Tensor>& student,
                                         const std::vector<at::Tensor>& teacher,
                                         const at::Tensor& valid,
                                         const std::vector<bool>& open) const {
  HEADKIT_CHECK(!student.empty() && student.size() == open.size(), kOperation,
                "a flag for each student layer", open.size(), " for ", student.size(), " layers");
  const at::Tensor w = projection_.to(student[0].options());
  const auto distance_of = [&](const at::Tensor& own, const at::Tensor& target) {
    return mean_square(at::matmul(own, w.t()) - target, valid);
  };
  at::Tensor sum = at::zeros({}, student[0].options());
  if (teacher.empty()) return sum;
  std::vector<at::Tensor> distances;
  {
    const c10::NoGradGuard no_grad;
    for (const at::Tensor& target : teacher) {
      for (const at::Tensor& own : student) distances.push_back(distance_of(own, target));
    }
  }
  const at::Tensor table = at::stack(distances).reshape(
      {static_cast<int64_t>(teacher.size()), static_cast<int64_t>(student.size())});
  const std::vector<int64_t> matched = match_layers(table, settings_.matching, open);
  for (size_t t = 0; t < teacher.size(); ++t) {
    if (matched[t] >= 0) sum = sum + distance_of(student[matched[t]], teacher[t]);
  }
  return sum;
}

at::Tensor LayerDistillation::loss(GatedModel& student, const ModelState& embedded,
                                   GatedModel& teacher, const GateSet& gates) const {
  Course dense;
  {
    const c10::NoGradGuard no_grad;
    const auto mode = teacher.evaluating();
    dense = run_by_layer(teacher, teacher.embed(embedded.batch), {});
  }
  std::vector<at::Tensor> targets;
  for (int64_t layer : settings_.teacher_layers) {
    HEADKIT_CHECK(layer <= static_cast<int64_t>(dense.hidden.size()), kOperation,
                  c10::str("teacher layers up to ", dense.hidden.size()), layer);
    targets.push_back(dense.hidden[layer - 1]);
  }
  const Course course = run_by_layer(student, embedded, gates);
  std::vector<bool> open(course.hidden.size(), true);
  if (const at::Tensor& attention = gates.attention_sublayers; attention.defined()) {
    const at::Tensor any = attention.dim() == 1 ? attention != 0 : (attention != 0).any(0);
    for (size_t layer = 0; layer < open.size(); ++layer) {
      open[layer] = any[static_cast<int64_t>(layer)].item<bool>();
    }
  }
  const at::Tensor prediction =
      kl_to_dense(settings_.temperature)->loss(course.output, embedded.batch, dense.output).mean();
  return settings_.prediction_weight * prediction +
         settings_.layer_weight * layer_loss(course.hidden, targets, course.valid, open);
}

}  // namespace headkit
