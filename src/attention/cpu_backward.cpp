#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>

#include "attention/backward_group.h"
#include "attention/backward_problem.h"
#include "attention/backward_sums.h"
#include "attention/composite_backward.h"
#include "attention/pair_backward.h"
#include "attention/saved_pairs.h"
#include "attention/token_panels.h"
#include "operators/outer_sums.h"
#include "operators/task_queue.h"

namespace headkit {
namespace {

// Floats of the workspace of one group of samples, unless a single sample needs more. A group sees
// the weights' gradients once.
constexpr int64_t kGroupFloats = int64_t{1} << 24;

// Samples from `first` on whose workspace fits into the bound, one at least: the end of the group.
int64_t group_end(const BackwardProblem& problem, int64_t first) {
  int64_t end = first, floats = 0;
  for (; end < problem.batch; ++end) {
    floats += BackwardGroup::floats(problem, end);
    if (end > first && floats > kGroupFloats) break;
  }
  return end;
}

// Packs the operands of a group: what its pairs and sums read in panels.
class Packing {
 public:
  static constexpr int64_t kItems = 5;

  Packing(const BackwardProblem& problem, const BackwardSums& sums, const BackwardGroup& group)
      : p_(problem), sums_(sums), group_(group) {}

  int64_t tasks() const { return group_.count() * kItems; }

  void run(int64_t task) const {
    const int64_t place = task / kItems, sample = group_.first() + place;
    if (p_.pairs_of(sample) == 0) return;
    const int64_t tokens = sample * p_.length * p_.width;
    const float* x = p_.x.const_data_ptr<float>() + tokens;
    const float* grad = p_.grad.const_data_ptr<float>() + tokens;
    const bool of_source = sums_.makes(kMatrixK) || sums_.makes(kMatrixV);
    switch (task % kItems) {
      case 0:
        return panels(grad, p_.length, p_.width, group_.grad_panels(place));
      case 1:
        if (!sums_.makes(kMatrixQ) && !(p_.self && of_source)) return;
        return columns(x, p_.length, p_.width, group_.x_columns(place));
      case 2:
        if (!sums_.makes(kMatrixO)) return;
        return columns(grad, p_.length, p_.width, group_.grad_columns(place));
      case 3:
        if (p_.self || !of_source) return;
        return columns(
            p_.source.const_data_ptr<float>() + sample * p_.source_length * p_.source_width,
            p_.source_length, p_.source_width, group_.source_columns(place));
      default:
        if (p_.rotary_dim > 0 && p_.of_scores) angles(sample, place);
    }
  }

 private:
  void panels(const float* x, int64_t length, int64_t width, float* to,
              const int32_t* rows = nullptr) const {
    pack_token_panels(
        p_.table,
        {.x = x, .rows = rows, .panel = to, .row_stride = width, .tokens = length, .width = width});
  }

  void columns(const float* x, int64_t length, int64_t width, float* to) const {
    p_.table.pack_column_panels({.from = x,
                                 .packed = to,
                                 .stride = width,
                                 .count = width,
                                 .depth = length,
                                 .transposed = true});
  }

  void angles(int64_t sample, int64_t place) const {
    const CpuPairs::Keys& keys = p_.pairs.keys[sample];
    float* to = group_.angles(place);
    float* of_keys = group_.key_angles(place);
    for (const at::Tensor& tensor : {p_.cosines, p_.sines}) {
      const float* from = tensor.const_data_ptr<float>() +
                          (tensor.size(0) == 1 ? 0 : sample) * p_.length * p_.rotary_dim;
      panels(from, p_.length, p_.rotary_dim, to);
      to += group_.angle_floats();
      if (!p_.self) continue;
      panels(keys.rows.empty() ? from + keys.first * p_.rotary_dim : from, keys.count,
             p_.rotary_dim, of_keys, p_.pairs.key_rows(sample));
      of_keys += group_.angle_floats();
    }
  }

  const BackwardProblem& p_;
  const BackwardSums& sums_;
  const BackwardGroup& group_;
};

// Group after group of samples: pack, then the pairs, then what sums over them, each a queue of its
// own. Neither threads nor their number show in a result; the groups are a matter of the problem
// alone.
void run_backward(const BackwardProblem& problem, PairBackward& pairs, BackwardSums& sums) {
  const int64_t threads = queue_threads();
  for (int64_t first = 0; first < problem.batch;) {
    const int64_t end = group_end(problem, first);
    const BackwardGroup group(problem, first, end);
    pairs.begin(group);
    sums.begin(group);
    if (!group.tasks().empty()) {
      const Packing packing(problem, sums, group);
      run_queue(threads, packing.tasks(), 0, [&](int64_t task, float*) { packing.run(task); });
      run_queue(threads, static_cast<int64_t>(group.tasks().size()), pairs.scratch_floats(),
                [&](int64_t task, float* scratch) { pairs.run(group.tasks()[task], scratch); });
    }
    run_queue(threads, sums.tasks(), sums.scratch_floats(),
              [&](int64_t task, float* scratch) { sums.run(task, scratch); });
    first = end;
  }
}

}  // namespace

DifferentiableTensors attention_cpu_backward(const AttentionProblem& problem,
                                             const at::Tensor& grad, const at::Tensor& saved,
                                             GradientMask mask) {
  if (problem.x.numel() == 0 || problem.heads == 0 || problem.head_dim == 0) {
    return attention_composite_backward(problem, grad, mask);
  }
  GradientMask of_pairs = mask;
  of_pairs[kOBias] = of_pairs[kDroppedOutput] = false;
  DifferentiableTensors gradients;
  at::Tensor pair_gradients;
  if (std::any_of(of_pairs.begin(), of_pairs.end(), [](bool wanted) { return wanted; })) {
    at::Tensor memory = saved;
    if (!memory.defined()) {
      // Somebody trains these weights: their packed form is not worth keeping.
      const at::AutoGradMode grad_mode(true);
      memory = at::empty({SavedPairs::floats(problem)}, problem.x.options().dtype(at::kFloat));
      save_pairs(problem, memory);
    }
    const SavedPairs kept(problem, memory);
    const BackwardProblem backward(problem, kept, grad, mask);
    PairBackward pairs(backward, mask);
    BackwardSums sums(backward, mask);
    run_backward(backward, pairs, sums);
    pairs.put(gradients);
    sums.put(gradients);
    pair_gradients = pairs.of_pairs();
  }
  const bool of_dropped = mask[kDroppedOutput] && problem.gate.defined();
  if (!mask[kOBias] && !mask[kGate] && !of_dropped) return gradients;
  const OuterSums outer({.gate = problem.gate,
                         .dropped_output = problem.dropped_output,
                         .units = problem.heads,
                         .skip = problem.skip},
                        grad);
  if (mask[kOBias]) gradients[kOBias] = outer.bias();
  if (mask[kGate]) gradients[kGate] = outer.gate(pair_gradients);
  if (of_dropped) gradients[kDroppedOutput] = outer.dropped_output();
  return gradients;
}

}  // namespace headkit
