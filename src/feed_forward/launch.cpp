#include <ATen/ATen.h>

#include <algorithm>
#include <vector>

#include "feed_forward/feed_forward_call.h"
#include "feed_forward/kept_rows.h"
#include "feed_forward/packed_blocks.h"
#include "feed_forward/row_blocks.h"
#include "operators/operand.h"
#include "operators/rounding.h"
#include "operators/task_queue.h"

namespace headkit {
namespace {

template <class Operand>
class FeedForwardLaunch {
  using Element = typename Operand::Element;
  using Packed = typename Operand::Packed;

 public:
  FeedForwardLaunch(const FeedForwardProblem& problem, const PackedBlocks& packed, at::Tensor& out,
                    const at::Tensor& kept)
      : kernels_(Operand::kernels()),
        panel_(kernels::kernel_table().panel),
        problem_(problem),
        packed_(packed),
        x_(elements_of<Operand>(problem.x)),
        out_(out),
        kept_(kept),
        length_(x_.size(1)),
        width_(x_.size(2)),
        depth_(Operand::depth(width_)),
        block_depth_(Operand::depth(problem.block_size)),
        threads_(queue_threads()),
        chunk_(hidden_chunk(problem.block_size)),
        groups_(sample_groups(problem, true)),
        row_blocks_(make_row_blocks(groups_, length_, panel_, threads_)) {
    for (const RowBlock& rows : row_blocks_) {
      const int64_t panels = panels_of(rows);
      const auto blocks = static_cast<int64_t>(groups_[rows.group].blocks.size());
      most_panels_ = std::max(most_panels_, panels);
      most_blocks_ = std::max(most_blocks_, blocks);
    }
    output_weights_.resize(groups_.size());
    for (size_t g = 0; g < groups_.size(); ++g) {
      for (const int32_t block : groups_[g].blocks) {
        output_weights_[g].push_back(packed.output_of<Packed>(block));
      }
    }
    begin_outputs();
  }

  void run() {
    if (threads_ == 1 || static_cast<int64_t>(row_blocks_.size()) >= 2 * threads_) {
      // Hidden panels of some blocks at a time, while they are in the second-level cache.
      const int64_t hidden = most_panels_ * panel_ * std::min(chunk_, most_blocks_) * block_depth_;
      run_queue(threads_, static_cast<int64_t>(row_blocks_.size()),
                token_floats() + hidden + activation_floats() + output_floats(),
                [this](int64_t task, float* scratch) { run_rows(row_blocks_[task], scratch); });
      return;
    }
    run_few_rows();
  }

 private:
  int64_t panels_of(const RowBlock& rows) const { return (rows.count + panel_ - 1) / panel_; }
  int64_t token_floats() const { return round_up(most_panels_ * panel_ * depth_, 16); }
  int64_t activation_floats() const {
    return round_up(kernels_.hidden_scratch_floats(problem_.block_size), 16);
  }
  // Rows of the output that do not lie beside each other, and of bfloat16 their sums.
  int64_t output_floats() const { return (Operand::kPairs ? 2 : 1) * row_floats(); }
  int64_t row_floats() const { return round_up(most_panels_ * panel_ * width_, 16); }

  // Bias and what closed blocks add: the first value of every row of the output.
  void begin_outputs() {
    const at::Tensor bias = in_float32(problem_.weights.out_bias);
    const at::Tensor dropped = in_float32(problem_.dropped_output);
    start_stride_ = width_ + kernels::kernel_table().vector_length;
    start_.assign(groups_.size() * start_stride_, 0.0f);
    for (size_t g = 0; g < groups_.size(); ++g) {
      float* row = start_.data() + g * start_stride_;
      if (bias.defined()) std::copy_n(bias.const_data_ptr<float>(), width_, row);
      if (!dropped.defined() || !problem_.gate.defined()) continue;
      const SampleGroup& group = groups_[g];
      size_t open = 0;
      for (int64_t block = 0; block < problem_.blocks; ++block) {
        const bool runs = open < group.blocks.size() && group.blocks[open] == block;
        const float share = 1.0f - (runs ? group.scale[open] : 0.0f);
        open += runs;
        if (share == 0.0f) continue;
        const float* added = dropped.const_data_ptr<float>() + block * width_;
        for (int64_t d = 0; d < width_; ++d) row[d] += share * added[d];
      }
    }
  }

  void pack_panel(const RowBlock& rows, int64_t panel, float* tokens) const {
    const int64_t first = panel * panel_;
    const int32_t* index = rows.index.empty() ? nullptr : rows.index.data() + first;
    kernels_.pack_tokens(
        {.x = data_of<Operand>(x_, index == nullptr ? (rows.first + first) * width_ : 0),
         .rows = index,
         .panel = packed(tokens) + first * depth_,
         .row_stride = width_,
         .tokens = std::min(panel_, rows.count - first),
         .width = width_});
  }

  static Packed* packed(float* place) { return reinterpret_cast<Packed*>(place); }
  static const Packed* packed(const float* place) { return reinterpret_cast<const Packed*>(place); }

  void compute_hidden(const RowBlock& rows, int64_t first, int64_t count, const float* tokens,
                      float* hidden, int64_t hidden_stride, float* scratch) const {
    const SampleGroup& group = groups_[rows.group];
    kernels_.feed_forward_hidden({.tokens = packed(tokens),
                                  .packed = packed_.all<Packed>(),
                                  .block_index = group.blocks.data() + first,
                                  .scale = group.scale.data() + first,
                                  .hidden = packed(hidden),
                                  .scratch = scratch,
                                  .num_blocks = count,
                                  .num_tokens = rows.count,
                                  .width = width_,
                                  .block_size = problem_.block_size,
                                  .hidden_stride = hidden_stride,
                                  .activation = problem_.activation,
                                  .gated = problem_.weights.up.defined(),
                                  .kept = kept_rows(problem_, kept_, rows.first, rows.index)});
  }

  // `buffer`: `output_floats`.
  void project(const RowBlock& rows, int64_t first, int64_t count, const float* hidden,
               int64_t hidden_stride, float* buffer, int64_t part, int64_t parts) const {
    const auto blocks = static_cast<int64_t>(groups_[rows.group].blocks.size());
    typename Operand::SumProjections params{
        .context = packed(hidden),
        .weights = output_weights_[rows.group].data() + first,
        .start = start_.data() + rows.group * start_stride_,
        .out = output_of(rows, buffer),
        .num_segments = count,
        .num_tokens = rows.count,
        .width = width_,
        .head_dim = problem_.block_size,
        .context_stride = hidden_stride,
        .part = part,
        .parts = parts,
        .add = first > 0,
        .finish = first + count >= blocks,
    };
    if constexpr (Operand::kPairs) params.sums = buffer + row_floats();
    kernels_.sum_projections(params);
  }

  Element* out() const { return static_cast<Element*>(out_.mutable_data_ptr()); }

  // Where the rows of the output go: in place where they lie beside each other.
  Element* output_of(const RowBlock& rows, float* buffer) const {
    return rows.index.empty() ? out() + rows.first * width_ : reinterpret_cast<Element*>(buffer);
  }

  void scatter(const RowBlock& rows, const float* buffer) const {
    if (rows.index.empty()) return;
    const auto* from = reinterpret_cast<const Element*>(buffer);
    for (int64_t i = 0; i < rows.count; ++i) {
      std::copy_n(from + i * width_, width_, out() + rows.index[i] * width_);
    }
  }

  void run_rows(const RowBlock& rows, float* scratch) const {
    const auto blocks = static_cast<int64_t>(groups_[rows.group].blocks.size());
    float* tokens = scratch;
    float* activation = tokens + token_floats();
    float* buffer = activation + activation_floats();
    float* hidden = buffer + output_floats();
    if (blocks > 0) {
      for (int64_t panel = 0; panel < panels_of(rows); ++panel) pack_panel(rows, panel, tokens);
    }
    for (int64_t first = 0; first == 0 || first < blocks; first += chunk_) {
      const int64_t count = std::min(chunk_, blocks - first);
      const int64_t stride = count * block_depth_ * panel_;
      compute_hidden(rows, first, count, tokens, hidden, stride, activation);
      project(rows, first, count, hidden, stride, buffer, 0, 1);
    }
    scatter(rows, buffer);
  }

  // Few blocks of rows for the threads: hidden panels are cut by blocks of neurons, then the output
  // by columns. The sums are those of `run_rows`, chunk by chunk.
  void run_few_rows() {
    const auto count = static_cast<int64_t>(row_blocks_.size());
    const int64_t hidden_floats = most_panels_ * panel_ * most_blocks_ * block_depth_;
    const int64_t place_floats = token_floats() + hidden_floats + output_floats();
    thread_local Arena arena;
    float* shared = arena.reserve(std::max<int64_t>(1, count * place_floats));
    const auto place = [&](int64_t rows) { return shared + rows * place_floats; };
    run_queue(threads_, count * most_panels_, 0, [&](int64_t task, float*) {
      const RowBlock& rows = row_blocks_[task / most_panels_];
      const int64_t panel = task % most_panels_;
      if (panel < panels_of(rows)) pack_panel(rows, panel, place(task / most_panels_));
    });
    const int64_t cuts = std::max<int64_t>(1, std::min(most_blocks_, 4 * threads_));
    run_queue(threads_, count * cuts, activation_floats(), [&](int64_t task, float* scratch) {
      const RowBlock& rows = row_blocks_[task / cuts];
      const auto blocks = static_cast<int64_t>(groups_[rows.group].blocks.size());
      const int64_t first = blocks * (task % cuts) / cuts;
      const int64_t end = blocks * (task % cuts + 1) / cuts;
      if (first == end) return;
      // Each chunk of blocks has its own panels, one chunk after the other.
      for (int64_t block = first; block < end;) {
        const int64_t chunk = block / chunk_ * chunk_;
        const int64_t in_chunk = std::min(chunk_, blocks - chunk);
        const int64_t here = std::min(end, chunk + in_chunk) - block;
        const int64_t stride = in_chunk * block_depth_ * panel_;
        float* tokens = place(task / cuts);
        float* hidden = tokens + token_floats() + chunk * block_depth_ * most_panels_ * panel_ +
                        (block - chunk) * block_depth_ * panel_;
        compute_hidden(rows, block, here, tokens, hidden, stride, scratch);
        block += here;
      }
    });
    const int64_t parts = std::clamp<int64_t>(2 * threads_ / count, 1, 16);
    run_queue(threads_, count * parts, 0, [&](int64_t task, float*) {
      const RowBlock& rows = row_blocks_[task / parts];
      const auto blocks = static_cast<int64_t>(groups_[rows.group].blocks.size());
      float* tokens = place(task / parts);
      float* buffer = tokens + token_floats() + hidden_floats;
      for (int64_t first = 0; first == 0 || first < blocks; first += chunk_) {
        const int64_t in_chunk = std::min(chunk_, blocks - first);
        const float* hidden =
            tokens + token_floats() + first * block_depth_ * most_panels_ * panel_;
        project(rows, first, in_chunk, hidden, in_chunk * block_depth_ * panel_, buffer,
                task % parts, parts);
      }
    });
    for (int64_t rows = 0; rows < count; ++rows) {
      scatter(row_blocks_[rows], place(rows) + token_floats() + hidden_floats);
    }
  }

  const typename Operand::Kernels& kernels_;
  const int64_t panel_;
  const FeedForwardProblem& problem_;
  const PackedBlocks& packed_;
  const at::Tensor x_;
  at::Tensor& out_;
  const at::Tensor& kept_;  // may be undefined
  const int64_t length_, width_, depth_, block_depth_, threads_, chunk_;
  const std::vector<SampleGroup> groups_;
  const std::vector<RowBlock> row_blocks_;
  std::vector<std::vector<const Packed*>> output_weights_;  // by group and block that runs
  std::vector<float> start_;                                // [groups] rows of start_stride_
  int64_t start_stride_ = 0, most_panels_ = 0, most_blocks_ = 0;
};

template <class Operand>
at::Tensor run(const FeedForwardProblem& problem, const at::Tensor& kept) {
  at::Tensor out = at::empty(problem.x.sizes(), problem.x.options().dtype(Operand::kDtype));
  if (out.numel() > 0) {
    const auto packed = packed_blocks<Operand>(problem);
    FeedForwardLaunch<Operand>(problem, *packed, out, kept).run();
  }
  return out.to(problem.x.scalar_type());
}

}  // namespace

at::Tensor feed_forward_cpu(const FeedForwardProblem& problem, const at::Tensor& kept) {
  return multiplies_bf16(problem.x.scalar_type()) ? run<Bf16Operand>(problem, kept)
                                                  : run<Float32Operand>(problem, kept);
}

}  // namespace headkit
