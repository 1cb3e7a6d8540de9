#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "attention/attention_problem.h"
#include "attention/cpu_pairs.h"
#include "attention/given_rows.h"
#include "attention/output_start.h"
#include "attention/packed_weights.h"
#include "attention/row_projection.h"
#include "kernels/dispatch.h"
#include "operators/places.h"
#include "operators/rounding.h"
#include "operators/task_queue.h"

namespace headkit {
namespace {

using kernels::AttendRowsParams;
using kernels::KernelTable;

// Keys of one task. Fixed, so that a result does not depend on the threads.
constexpr int64_t kChunk = 512;

// Keys and values as the kernels read them: bfloat16 as it lies, the rest in float32.
at::Tensor as_read(const at::Tensor& given) {
  return given.scalar_type() == at::kBFloat16 ? given : given.to(at::kFloat);
}

// The queries of one sample that read one KV head.
struct Group {
  int64_t sample = 0, kv_head = 0;
  std::vector<int32_t> heads = {};  // open query heads
  int64_t queries = 0;              // heads * tokens, a head's tokens together
  int64_t chunks = 0;
  int64_t first = 0;  // its first partial context
};

// Few queries against many given keys. Time goes into reading: each weight once for the whole
// batch, each key and value once for the queries that share them.
class DecodeLaunch {
 public:
  /// `out` is float32.
  DecodeLaunch(const AttentionProblem& problem, at::Tensor& out)
      : table_(kernels::kernel_table()),
        problem_(problem),
        out_(out),
        queries_(problem.x, problem.head_dim, problem.q_transform, problem.scale),
        pairs_(problem),
        batch_(problem.x.size(0)),
        length_(problem.x.size(1)),
        width_(problem.x.size(2)),
        head_dim_(problem.head_dim),
        row_(queries_.row_floats()),
        threads_(queue_threads()),
        reads_bf16_(problem.k.scalar_type() == at::kBFloat16),
        k_(as_read(problem.k)),
        v_(as_read(problem.v)),
        start_(problem, pairs_),
        place_(problem.heads, -1) {
    const AttentionWeights& weights = problem.weights;
    if (pairs_.list.pairs() > 0) {
      query_weights_ = packed_rows(weights.q, weights.q_bias, problem.heads, head_dim_);
      outputs_ = packed_output_heads(weights, problem.heads, head_dim_);
    }
    for (int64_t head = 0; head < problem.heads; ++head) {
      if (pairs_.list.col_offset[head] == pairs_.list.col_offset[head + 1]) continue;
      place_[head] = static_cast<int64_t>(open_heads_.size());
      open_heads_.push_back(head);
      output_weights_.push_back(outputs_->at(head, 0));
    }
    find_groups();
  }

  void run() {
    thread_local Arena arena;
    const int64_t heads = static_cast<int64_t>(open_heads_.size());
    const int64_t panels = queries_.panels(), rows = panels * table_.panel;
    Places places;
    const int64_t tokens = places.place(queries_.token_floats());
    const int64_t q = places.place(heads * rows * row_);
    const int64_t context = places.place(heads * rows * head_dim_);
    const int64_t partial_context = places.place(partials_ * row_);
    const int64_t largest = places.place(partials_), sum = places.place(partials_);
    float* workspace = arena.reserve(places.floats());
    tokens_ = workspace + tokens;
    q_ = workspace + q;
    context_ = workspace + context;
    partial_context_ = workspace + partial_context;
    largest_ = workspace + largest;
    sum_ = workspace + sum;
    if (heads > 0) {
      run_queue(threads_, panels, 0, [&](int64_t panel, float*) { queries_.pack(panel, tokens_); });
      run_queue(threads_, heads * panels, 0, [&](int64_t task, float*) {
        const int64_t panel = task % panels, first = panel * table_.panel;
        if (!runs(open_heads_[task / panels], first)) return;
        queries_.project(*query_weights_, open_heads_[task / panels], tokens_, panel,
                         std::min(table_.panel, queries_.rows() - first), true,
                         q_ + (task / panels * rows + first) * row_);
      });
      run_queue(threads_, static_cast<int64_t>(chunks_.size()), scratch_floats(),
                [&](int64_t task, float* scratch) { attend(chunks_[task], scratch); });
      run_queue(threads_, batch_, 0, [&](int64_t sample, float*) { merge(sample); });
    }
    const int64_t parts = threads_ == 1 ? 1 : 4 * threads_;
    const std::vector<float> start(width_ + table_.vector_length, 0.0f);
    run_queue(threads_, panels * parts, 0, [&](int64_t task, float*) {
      const int64_t first = task / parts * table_.panel;
      table_.sum_projections({.context = context_ + first * heads * head_dim_,
                              .weights = output_weights_.data(),
                              .start = start.data(),
                              .out = out_.mutable_data_ptr<float>() + first * width_,
                              .num_segments = heads,
                              .num_tokens = std::min(table_.panel, queries_.rows() - first),
                              .width = width_,
                              .head_dim = head_dim_,
                              .context_stride = heads * head_dim_ * table_.panel,
                              .part = task % parts,
                              .parts = parts});
    });
    add_start();
  }

 private:
  // Whether a head runs for any sample of the panel that begins at row `first`.
  bool runs(int64_t head, int64_t first) const {
    const int64_t last = std::min(first + table_.panel, queries_.rows()) - 1;
    const auto begin = pairs_.list.sample_index.begin() + pairs_.list.col_offset[head];
    const auto end = pairs_.list.sample_index.begin() + pairs_.list.col_offset[head + 1];
    const auto sample = std::lower_bound(begin, end, static_cast<int32_t>(first / length_));
    return sample != end && *sample <= last / length_;
  }

  void find_groups() {
    for (int64_t b = 0; b < batch_; ++b) {
      first_group_.push_back(static_cast<int64_t>(groups_.size()));
      for (int64_t i = pairs_.kv.row_offset[b]; i < pairs_.kv.row_offset[b + 1]; ++i) {
        groups_.push_back({.sample = b, .kv_head = pairs_.kv.head_index[i]});
      }
      for (int64_t i = pairs_.list.row_offset[b]; i < pairs_.list.row_offset[b + 1]; ++i) {
        const int32_t head = pairs_.list.head_index[i];
        const int64_t entry = pairs_.kv_entry(b, head) - pairs_.kv.row_offset[b];
        groups_[first_group_.back() + entry].heads.push_back(head);
      }
    }
    first_group_.push_back(static_cast<int64_t>(groups_.size()));
    for (size_t i = 0; i < groups_.size(); ++i) {
      Group& group = groups_[i];
      group.queries = static_cast<int64_t>(group.heads.size()) * length_;
      group.chunks = ceil_div(pairs_.keys[group.sample].count, kChunk);
      group.first = partials_;
      partials_ += group.queries * group.chunks;
      most_queries_ = std::max(most_queries_, group.queries);
      for (int64_t chunk = 0; chunk < group.chunks; ++chunk) {
        chunks_.push_back({static_cast<int64_t>(i), chunk});
      }
    }
  }

  struct Chunk {
    int64_t group, chunk;
  };

  int64_t scratch_floats() const {
    return most_queries_ * row_ + round_up(table_.attend_rows_scratch_floats(), 16);
  }

  void attend(const Chunk& task, float* scratch) const {
    const Group& group = groups_[task.group];
    const CpuPairs::Keys& keys = pairs_.keys[group.sample];
    float* q = scratch + round_up(table_.attend_rows_scratch_floats(), 16);
    std::vector<int32_t> tokens;
    std::vector<const float*> bias;
    kernels::ScoreParams scores{};
    for (const int32_t head : group.heads) {
      scores = pairs_.scores(group.sample, head);
      for (int64_t t = 0; t < length_; ++t) {
        const int64_t row = group.sample * length_ + t;
        const float* from = q_ + (place_[head] * queries_.panels() * table_.panel + row) * row_;
        std::copy_n(from, row_, q + tokens.size() * row_);
        tokens.push_back(static_cast<int32_t>(t));
        if (scores.bias != nullptr) bias.push_back(scores.bias + t * scores.bias_query_stride);
      }
    }
    const int64_t first = group.first + task.chunk * group.queries;
    const auto attend_rows = [&]<class Element>(void (*kernel)(const AttendRowsParams<Element>&)) {
      const auto of_head = [&](const GivenRows& given) {
        const auto* from = given.of<Element>(group.sample, group.kv_head);
        return keys.rows.empty() ? from + keys.first * given.stride() : from;
      };
      kernel({.q = q,
              .tokens = tokens.data(),
              .bias = bias.empty() ? nullptr : bias.data(),
              .k = of_head(k_),
              .v = of_head(v_),
              .key_rows = pairs_.key_rows(group.sample),
              .context = partial_context_ + first * row_,
              .largest = largest_ + first,
              .sum = sum_ + first,
              .scratch = scratch,
              .scores = scores,
              .first_key = task.chunk * kChunk,
              .num_keys = std::min(kChunk, keys.count - task.chunk * kChunk),
              .num_queries = group.queries,
              .head_dim = head_dim_,
              .q_stride = row_,
              .k_stride = k_.stride(),
              .v_stride = v_.stride()});
    };
    reads_bf16_ ? attend_rows(table_.attend_bf16_rows) : attend_rows(table_.attend_rows);
  }

  // The column of a row and an open head in the panels of contexts; its dimensions lie P apart.
  float* context_of(int64_t row, int64_t place) const {
    const int64_t heads = static_cast<int64_t>(open_heads_.size());
    return context_ + row / table_.panel * heads * head_dim_ * table_.panel +
           place * head_dim_ * table_.panel + row % table_.panel;
  }

  // Contexts of a sample out of those of its chunks of keys, in their order; 0 of closed heads.
  void merge(int64_t sample) const {
    for (size_t place = 0; place < open_heads_.size(); ++place) {
      for (int64_t t = 0; t < length_; ++t) {
        float* to = context_of(sample * length_ + t, place);
        for (int64_t d = 0; d < head_dim_; ++d) to[d * table_.panel] = 0.0f;
      }
    }
    const float* gate = pairs_.gate.const_data_ptr<float>() + sample * problem_.heads;
    for (int64_t i = first_group_[sample]; i < first_group_[sample + 1]; ++i) {
      const Group& group = groups_[i];
      for (int64_t query = 0; query < group.queries; ++query) {
        float largest = -std::numeric_limits<float>::infinity(), sum = 0.0f;
        for (int64_t c = 0; c < group.chunks; ++c) {
          largest = std::max(largest, largest_[group.first + c * group.queries + query]);
        }
        if (std::isinf(largest) && largest < 0.0f) continue;  // it sees nothing
        const auto share = [&](int64_t partial) { return std::exp(largest_[partial] - largest); };
        for (int64_t c = 0; c < group.chunks; ++c) {
          const int64_t partial = group.first + c * group.queries + query;
          sum += share(partial) * sum_[partial];
        }
        const int32_t head = group.heads[query / length_];
        float* to = context_of(sample * length_ + query % length_, place_[head]);
        for (int64_t c = 0; c < group.chunks; ++c) {
          const int64_t partial = group.first + c * group.queries + query;
          const float weight = share(partial) * gate[head] / sum;
          const float* from = partial_context_ + partial * row_;
          for (int64_t d = 0; d < head_dim_; ++d) to[d * table_.panel] += weight * from[d];
        }
      }
    }
  }

  // Bias and what closed heads add, which differs between samples.
  void add_start() {
    for (int64_t b = 0; b < batch_; ++b) {
      start_.write(b);
      float* row = out_.mutable_data_ptr<float>() + b * length_ * width_;
      for (int64_t t = 0; t < length_; ++t, row += width_) {
        for (int64_t d = 0; d < width_; ++d) row[d] += start_.row(b)[d];
      }
    }
  }

  const KernelTable& table_;
  const AttentionProblem& problem_;
  at::Tensor& out_;
  const RowProjection queries_;
  const CpuPairs pairs_;
  const int64_t batch_, length_, width_, head_dim_, row_, threads_;
  const bool reads_bf16_;
  const GivenRows k_, v_;
  OutputStart start_;
  std::shared_ptr<const PackedHeads> query_weights_, outputs_;
  std::vector<int64_t> open_heads_;  // that run for any sample
  std::vector<int64_t> place_;       // of each head in open_heads_, or -1
  std::vector<const float*> output_weights_;
  std::vector<Group> groups_;
  std::vector<int64_t> first_group_;  // of each sample
  std::vector<Chunk> chunks_;
  int64_t partials_ = 0, most_queries_ = 0;
  float *tokens_ = nullptr, *q_ = nullptr, *context_ = nullptr, *partial_context_ = nullptr,
        *largest_ = nullptr, *sum_ = nullptr;
};

}  // namespace

at::Tensor attention_cpu_decode(const AttentionProblem& problem) {
  at::Tensor out = at::empty(problem.x.sizes(), problem.x.options().dtype(at::kFloat));
  if (out.numel() > 0) DecodeLaunch(problem, out).run();
  return out.to(problem.x.scalar_type());
}

}  // namespace headkit
