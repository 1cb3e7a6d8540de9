#include <ATen/ATen.h>

#include <algorithm>
#include <vector>

#include "feed_forward/feed_forward_call.h"
#include "feed_forward/kept_rows.h"
#include "feed_forward/packed_blocks.h"
#include "feed_forward/sample_groups.h"
#include "kernels/dispatch.h"
#include "operators/cache_sizes.h"
#include "operators/float32.h"
#include "operators/operand.h"
#include "operators/outer_sums.h"
#include "operators/rounding.h"
#include "operators/task_queue.h"

namespace headkit {
namespace {

using kernels::KernelTable;

// Neurons whose gradients of weights are summed up together: the tokens are read once for them.
constexpr int64_t kRunNeurons = 128;
// Floats of the workspace of some rows, unless one panel of them needs more. Each such part of the
// rows sees the gradients of the weights once.
constexpr int64_t kPartFloats = int64_t{1} << 24;

int64_t aligned(int64_t floats) { return round_up(floats, 16); }

// Open blocks that lie beside each other.
struct BlockRun {
  int64_t place;  // of the first among the open blocks
  int64_t first;  // the first
  int64_t count;
};

std::vector<BlockRun> block_runs(const std::vector<int32_t>& blocks, int64_t most) {
  std::vector<BlockRun> runs;
  for (size_t i = 0; i < blocks.size(); ++i) {
    const bool follows = i > 0 && blocks[i] == blocks[i - 1] + 1 && runs.back().count < most;
    if (follows) {
      ++runs.back().count;
    } else {
      runs.push_back({static_cast<int64_t>(i), blocks[i], 1});
    }
  }
  return runs;
}

enum Matrix : int { kIn, kUp, kOut, kMatrices };

// One group of samples after the other, in parts of its rows. The stages of a part are queues of
// their own: hidden values, then what sums over them. Every sum runs over its rows in a fixed order
// inside one task, so neither threads nor their number show in a result.
class FeedForwardBackward {
 public:
  FeedForwardBackward(const FeedForwardProblem& problem, const at::Tensor& grad,
                      const at::Tensor& kept, const FeedForwardMask& mask)
      : table_(kernels::kernel_table()),
        problem_(problem),
        x_(in_float32(problem.x)),
        grad_(in_float32(grad)),
        kept_(kept.defined() ? kept.contiguous() : kept),
        length_(x_.size(1)),
        width_(x_.size(2)),
        block_size_(problem.block_size),
        threads_(queue_threads()),
        gated_(problem.weights.up.defined()),
        of_gate_(mask[kBlockGate]),
        groups_(sample_groups(problem, true)) {
    if (!kept_.defined()) packed_ = packed_blocks<Float32Operand>(problem);
    // Whole blocks: the neurons beyond the last one are cut off at the end.
    const int64_t neurons = problem.blocks * block_size_;
    const auto room = [&](bool wanted, at::IntArrayRef shape) {
      return wanted ? at::zeros(shape, x_.options()) : at::Tensor();
    };
    if (mask[kFeedForwardX]) input_ = at::empty_like(x_);
    weight_[kIn] = room(mask[kInWeight] || mask[kInBias], {neurons, width_});
    weight_[kUp] = room(mask[kUpWeight] || mask[kUpBias], {neurons, width_});
    weight_[kOut] = room(mask[kOutWeight], {width_, neurons});
    bias_[kIn] = room(mask[kInBias], {neurons});
    bias_[kUp] = room(mask[kUpBias], {neurons});
    of_blocks_.assign(x_.size(0) * problem.blocks, 0.0);
    pack_weights();
  }

  void run() {
    for (const SampleGroup& group : groups_) run_group(group);
  }

  /// <dOut W_out, hidden> of each block and sample, [B, N].
  at::Tensor of_blocks() const {
    at::Tensor result = at::empty({x_.size(0), problem_.blocks}, x_.options());
    std::transform(of_blocks_.begin(), of_blocks_.end(), result.mutable_data_ptr<float>(),
                   [](double value) { return static_cast<float>(value); });
    return result;
  }

  FeedForwardTensors gradients(const FeedForwardMask& mask) const {
    const auto cut = [&](bool wanted, const at::Tensor& whole, int64_t dim) {
      return wanted ? whole.narrow(dim, 0, problem_.neurons) : at::Tensor();
    };
    FeedForwardTensors result;
    result[kFeedForwardX] = input_;
    result[kInWeight] = cut(mask[kInWeight], weight_[kIn], 0);
    result[kUpWeight] = cut(mask[kUpWeight], weight_[kUp], 0);
    result[kOutWeight] = cut(mask[kOutWeight], weight_[kOut], 1);
    result[kInBias] = cut(mask[kInBias], bias_[kIn], 0);
    result[kUpBias] = cut(mask[kUpBias], bias_[kUp], 0);
    return result;
  }

 private:
  // Beside the forward's: W_out^T as weight blocks, W_in and W_up as column panels, of the blocks
  // that run somewhere.
  void pack_weights() {
    std::vector<bool> runs(problem_.blocks);
    for (const SampleGroup& group : groups_) {
      for (const int32_t block : group.blocks) runs[block] = true;
    }
    out_floats_ = table_.block_floats(block_size_, width_);
    panel_floats_ = table_.column_panel_floats(width_, block_size_);
    const int64_t floats = out_floats_ + (gated_ ? 2 : 1) * panel_floats_;
    thread_local Arena arena;
    out_blocks_ = arena.reserve(problem_.blocks * floats);
    float* panels = out_blocks_ + problem_.blocks * out_floats_;
    panels_[kIn] = panels;
    panels_[kUp] = panels + problem_.blocks * panel_floats_;
    const FeedForwardWeights& w = problem_.weights;
    const at::Tensor out = in_float32(w.out);
    const at::Tensor inner[] = {in_float32(w.in), in_float32(w.up)};
    run_queue(threads_, problem_.blocks, block_size_ * width_, [&](int64_t block, float* scratch) {
      if (!runs[block]) return;
      const int64_t first = problem_.first_neuron(block), neurons = problem_.neurons_of(block);
      float* blocks = out_blocks_ + block * out_floats_;
      if (neurons < block_size_) std::fill_n(blocks, out_floats_, 0.0f);
      table_.pack_blocks({.from = out.const_data_ptr<float>() + first,
                          .packed = blocks,
                          .stride = problem_.neurons,
                          .count = neurons,
                          .depth = width_,
                          .transposed = true});
      if (!input_.defined()) return;
      for (const Matrix matrix : {kIn, kUp}) {
        if (!inner[matrix].defined()) continue;
        const float* from = inner[matrix].const_data_ptr<float>() + first * width_;
        if (neurons < block_size_) {
          std::fill(std::copy_n(from, neurons * width_, scratch), scratch + block_size_ * width_,
                    0.0f);
          from = scratch;
        }
        table_.pack_column_panels({.from = from,
                                   .packed = panels_[matrix] + block * panel_floats_,
                                   .stride = width_,
                                   .count = width_,
                                   .depth = block_size_,
                                   .transposed = true});
      }
    });
  }

  int64_t row_floats(int64_t neurons) const {
    return ceil_div(neurons, table_.vector_length) * table_.vector_length;
  }

  void run_group(const SampleGroup& group) {
    const auto samples = static_cast<int64_t>(group.samples.size());
    const auto blocks = static_cast<int64_t>(group.blocks.size());
    const at::Tensor index =
        at::tensor(at::ArrayRef<int64_t>(group.samples), at::TensorOptions().dtype(at::kLong));
    const bool beside = group.samples.back() - group.samples.front() + 1 == samples;
    const auto rows_of = [&](const at::Tensor& tensor) {
      return beside ? tensor.narrow(0, group.samples.front(), samples)
                    : tensor.index_select(0, index);
    };
    const at::Tensor x = rows_of(x_), grad = rows_of(grad_);
    at::Tensor input;
    if (input_.defined()) input = beside ? rows_of(input_) : at::empty_like(x);
    if (blocks == 0) {
      if (input.defined()) input.zero_();
    } else {
      const std::vector<BlockRun> runs =
          block_runs(group.blocks, std::max<int64_t>(1, kRunNeurons / block_size_));
      const int64_t row = 4 * width_ + blocks * block_size_ * (gated_ ? 5 : 3) + blocks;
      const int64_t panels = std::max<int64_t>(1, kPartFloats / (row * table_.panel));
      const int64_t rows = samples * length_;
      for (int64_t first = 0; first < rows; first += panels * table_.panel) {
        const int64_t count = std::min(panels * table_.panel, rows - first);
        RowPart part{
            .group = group,
            .runs = runs,
            .x = x.const_data_ptr<float>() + first * width_,
            .grad = grad.const_data_ptr<float>() + first * width_,
            .input = input.defined() ? input.mutable_data_ptr<float>() + first * width_ : nullptr,
            .first = first,
            .count = count,
            .first_row = group.samples.front() * length_ + first};
        for (int64_t row = first; row < first + count && !beside; ++row) {
          part.index.push_back(
              static_cast<int32_t>(group.samples[row / length_] * length_ + row % length_));
        }
        run_part(part);
      }
    }
    if (input.defined() && !beside) input_.index_copy_(0, index, input);
  }

  // Some rows of one group.
  struct RowPart {
    const SampleGroup& group;
    const std::vector<BlockRun>& runs;
    const float* x;
    const float* grad;
    float* input;   // their gradient; or nullptr
    int64_t first;  // among the rows of the group
    int64_t count;
    int64_t first_row;                // among the rows of x, if they lie beside each other
    std::vector<int32_t> index = {};  // [count] rows of x if not

    float *tokens = nullptr, *grad_tokens = nullptr, *columns = nullptr, *grad_columns = nullptr;
    float* panels = nullptr;      // gradients: of in, then of up, of all blocks
    float* rows[kMatrices] = {};  // of each run, one after the other
    float* gate_sums = nullptr;   // [blocks][gate_stride]
    int64_t gate_stride = 0, panel_stride = 0;
    std::vector<int64_t> row_place = {};  // of each run in `rows`
  };

  void run_part(RowPart& part) {
    const auto blocks = static_cast<int64_t>(part.group.blocks.size());
    const int64_t panels = ceil_div(part.count, table_.panel);
    const int64_t token_floats = panels * table_.panel * width_;
    const int64_t column_floats = table_.column_panel_floats(width_, part.count);
    part.gate_stride = panels * table_.panel;
    part.panel_stride = (gated_ ? 2 : 1) * blocks * block_size_ * table_.panel;
    int64_t row_floats_of_all = 0;
    for (const BlockRun& run : part.runs) {
      part.row_place.push_back(row_floats_of_all);
      row_floats_of_all += part.count * row_floats(run.count * block_size_);
    }
    row_floats_of_all = aligned(row_floats_of_all);
    thread_local Arena arena;
    part.tokens = arena.reserve(2 * token_floats + 2 * column_floats + panels * part.panel_stride +
                                kMatrices * row_floats_of_all + blocks * part.gate_stride);
    part.grad_tokens = part.tokens + token_floats;
    part.columns = part.grad_tokens + token_floats;
    part.grad_columns = part.columns + column_floats;
    part.panels = part.grad_columns + column_floats;
    part.rows[kIn] = part.panels + panels * part.panel_stride;
    part.rows[kUp] = part.rows[kIn] + row_floats_of_all;
    part.rows[kOut] = part.rows[kUp] + row_floats_of_all;
    part.gate_sums = part.rows[kOut] + row_floats_of_all;

    run_queue(threads_, 2 * panels + 2, 0,
              [&](int64_t task, float*) { prepare(part, panels, task); });
    const int64_t panels_of_block = std::max<int64_t>(1, kPassRows / table_.panel);
    const int64_t row_blocks = ceil_div(panels, panels_of_block);
    const auto runs = static_cast<int64_t>(part.runs.size());
    int64_t most_blocks = 0;
    for (const BlockRun& run : part.runs) most_blocks = std::max(most_blocks, run.count);
    run_queue(threads_, row_blocks * runs,
              table_.hidden_backward_scratch_floats(most_blocks, block_size_),
              [&](int64_t task, float* scratch) {
                const int64_t first = task / runs * panels_of_block * table_.panel;
                const int64_t count = std::min(panels_of_block * table_.panel, part.count - first);
                compute_hidden(part, task % runs, first, count, scratch);
              });
    if (of_gate_) sum_gates(part);
    const int64_t weight_tasks = kMatrices * runs;
    const int64_t input_tasks = part.input != nullptr ? row_blocks : 0;
    run_queue(threads_, weight_tasks + input_tasks,
              table_.weight_gradient_scratch_floats(most_blocks * block_size_),
              [&](int64_t task, float* scratch) {
                if (task < weight_tasks) {
                  return sum_weight(part, task / kMatrices, static_cast<Matrix>(task % kMatrices),
                                    scratch);
                }
                const int64_t first = (task - weight_tasks) * panels_of_block * table_.panel;
                sum_input(part, first,
                          std::min(panels_of_block * table_.panel, part.count - first));
              });
  }

  void prepare(const RowPart& part, int64_t panels, int64_t task) const {
    if (task < 2) {
      const bool of_grad = task == 1;
      if (of_grad ? !weight_[kOut].defined() : !weight_[kIn].defined() && !weight_[kUp].defined()) {
        return;
      }
      table_.pack_column_panels({.from = of_grad ? part.grad : part.x,
                                 .packed = of_grad ? part.grad_columns : part.columns,
                                 .stride = width_,
                                 .count = width_,
                                 .depth = part.count,
                                 .transposed = true});
      return;
    }
    const bool of_grad = (task - 2) / panels == 1;
    const int64_t first = (task - 2) % panels * table_.panel;
    table_.pack_tokens({.x = (of_grad ? part.grad : part.x) + first * width_,
                        .rows = nullptr,
                        .panel = (of_grad ? part.grad_tokens : part.tokens) + first * width_,
                        .row_stride = width_,
                        .tokens = std::min(table_.panel, part.count - first),
                        .width = width_});
  }

  void compute_hidden(const RowPart& part, int64_t run_index, int64_t first, int64_t count,
                      float* scratch) const {
    const BlockRun& run = part.runs[run_index];
    const int64_t place = run.place * block_size_ * table_.panel;
    float* in_panels = part.panels + first / table_.panel * part.panel_stride + place;
    const int64_t row = first * row_floats(run.count * block_size_) + part.row_place[run_index];
    kernels::KeptRows kept = kept_rows(problem_, kept_, part.first_row + first, part.index);
    if (kept.rows != nullptr) kept.rows += first;
    table_.feed_forward_hidden_backward(
        {.forward = {.tokens = part.tokens + first * width_,
                     .packed = packed_ == nullptr ? nullptr : packed_->data.get(),
                     .block_index = part.group.blocks.data() + run.place,
                     .scale = part.group.scale.data() + run.place,
                     .hidden = nullptr,
                     .scratch = scratch,
                     .num_blocks = run.count,
                     .num_tokens = count,
                     .width = width_,
                     .block_size = block_size_,
                     .hidden_stride = 0,
                     .activation = problem_.activation,
                     .gated = gated_,
                     .kept = kept},
         .output_gradient = part.grad_tokens + first * width_,
         .out_blocks = out_blocks_,
         .in_panels = in_panels,
         .up_panels = gated_ ? in_panels + part.panel_stride / 2 : nullptr,
         .in_rows = part.rows[kIn] + row,
         .up_rows = part.rows[kUp] + row,
         .hidden_rows = part.rows[kOut] + row,
         .gate_sums = part.gate_sums + run.place * part.gate_stride + first,
         .panel_stride = part.panel_stride,
         .gate_stride = part.gate_stride});
  }

  void sum_gates(const RowPart& part) {
    for (size_t i = 0; i < part.group.blocks.size(); ++i) {
      const float* sums = part.gate_sums + i * part.gate_stride;
      for (int64_t t = 0; t < part.count; ++t) {
        const int64_t sample = part.group.samples[(part.first + t) / length_];
        of_blocks_[sample * problem_.blocks + part.group.blocks[i]] += sums[t];
      }
    }
  }

  void sum_weight(const RowPart& part, int64_t run_index, Matrix matrix, float* scratch) {
    if (!weight_[matrix].defined()) return;
    const BlockRun& run = part.runs[run_index];
    const int64_t first = run.first * block_size_;
    const bool out = matrix == kOut;
    static constexpr int32_t kOnly = 0;
    table_.weight_gradient(
        {.rows = part.rows[matrix] + part.row_place[run_index],
         .columns = out ? part.grad_columns : part.columns,
         .sample_index = &kOnly,
         .out = weight_[matrix].mutable_data_ptr<float>() + first * (out ? 1 : width_),
         .bias = !out && bias_[matrix].defined() ? bias_[matrix].mutable_data_ptr<float>() + first
                                                 : nullptr,
         .scratch = scratch,
         .num_samples = 1,
         .num_tokens = part.count,
         .width = width_,
         .head_dim = run.count * block_size_,
         .sample_stride = 0,
         .out_stride = out ? problem_.blocks * block_size_ : width_,
         .transposed = out,
         .add = true,
         .part = 0,
         .parts = 1});
  }

  void sum_input(const RowPart& part, int64_t first, int64_t count) const {
    const std::vector<float> start(width_ + table_.vector_length, 0.0f);
    std::vector<const float*> weights;
    for (int m = kIn; m <= (gated_ ? kUp : kIn); ++m) {
      for (const int32_t block : part.group.blocks) {
        weights.push_back(panels_[m] + block * panel_floats_);
      }
    }
    table_.sum_projections({.context = part.panels + first / table_.panel * part.panel_stride,
                            .weights = weights.data(),
                            .start = start.data(),
                            .out = part.input + first * width_,
                            .num_segments = static_cast<int64_t>(weights.size()),
                            .num_tokens = count,
                            .width = width_,
                            .head_dim = block_size_,
                            .context_stride = part.panel_stride,
                            .part = 0,
                            .parts = 1});
  }

  const KernelTable& table_;
  const FeedForwardProblem& problem_;
  const at::Tensor x_, grad_;
  const at::Tensor kept_;  // may be undefined
  const int64_t length_, width_, block_size_, threads_;
  const bool gated_, of_gate_;
  const std::vector<SampleGroup> groups_;
  std::shared_ptr<const PackedBlocks> packed_;  // nullptr where nothing is computed again
  at::Tensor input_, weight_[kMatrices], bias_[2];
  std::vector<double> of_blocks_;  // [B, N]
  float* out_blocks_ = nullptr;
  float* panels_[2] = {};
  int64_t out_floats_ = 0, panel_floats_ = 0;
};

}  // namespace

FeedForwardTensors feed_forward_cpu_backward(const FeedForwardProblem& problem,
                                             const at::Tensor& grad, const at::Tensor& kept,
                                             const FeedForwardMask& mask) {
  if (problem.x.numel() == 0 || problem.neurons == 0) {
    return feed_forward_composite_backward(problem, grad, mask);
  }
  FeedForwardMask of_blocks = mask;
  of_blocks[kOutBias] = of_blocks[kDroppedBlocks] = false;
  FeedForwardTensors gradients;
  at::Tensor gate_gradients;
  if (std::any_of(of_blocks.begin(), of_blocks.end(), [](bool wanted) { return wanted; })) {
    FeedForwardBackward backward(problem, grad, kept, mask);
    backward.run();
    gradients = backward.gradients(mask);
    gate_gradients = backward.of_blocks();
  }
  const bool of_dropped = mask[kDroppedBlocks] && problem.gate.defined();
  if (!mask[kOutBias] && !mask[kBlockGate] && !of_dropped) return gradients;
  const OuterSums outer({problem.gate, problem.dropped_output, problem.blocks, problem.skip}, grad);
  if (mask[kOutBias]) gradients[kOutBias] = outer.bias();
  if (mask[kBlockGate]) gradients[kBlockGate] = outer.gate(gate_gradients);
  if (of_dropped) gradients[kDroppedBlocks] = outer.dropped_output();
  return gradients;
}

}  // namespace headkit
