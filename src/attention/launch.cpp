#include "attention/launch.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "attention/attention_problem.h"
#include "attention/cpu_pairs.h"
#include "attention/given_rows.h"
#include "attention/output_start.h"
#include "attention/packed_weights.h"
#include "attention/sample_queue.h"
#include "attention/saved_pairs.h"
#include "operators/cache_sizes.h"
#include "operators/operand.h"
#include "operators/places.h"
#include "operators/rounding.h"
#include "operators/task_queue.h"

namespace headkit {
namespace {

using kernels::KernelTable;

// Tokens of a sample up to which given keys are read as they are, not put into panels first.
constexpr int64_t kFewQueries = 4;

struct Sample {
  int64_t index = 0;
  int64_t first_pair = 0, num_pairs = 0;
  int64_t first_kv = 0, num_kv = 0;  // KV heads that tasks of their own compute
  int64_t num_keys = 0;
};

// The cosines and sines of some tokens, in panels.
struct Rotary {
  const float* cosines = nullptr;
  const float* sines = nullptr;
};

// On float32, or on bfloat16: then products are summed in float32 and rounded once on their way to
// the next product, queries and keys after their norm and rotary embedding; so are the
// probabilities.
template <class Operand>
class Launch {
  using Element = typename Operand::Element;
  using Packed = typename Operand::Packed;

 public:
  /// `out` of the operand's dtype, undefined = not wanted; `saved` only of float32, may be nullptr.
  Launch(const AttentionProblem& problem, const at::Tensor& out, const SavedPairs* saved)
      : table_(kernels::kernel_table()),
        kernels_(Operand::kernels()),
        problem_(problem),
        x_(elements_of<Operand>(problem.x)),
        source_(problem.kv.defined() ? elements_of<Operand>(problem.kv) : x_),
        cosines_(in_float32(problem.q_transform.rotary_cos)),
        sines_(in_float32(problem.q_transform.rotary_sin)),
        q_norm_(in_float32(problem.q_transform.norm_weight)),
        k_norm_(in_float32(problem.k_transform.norm_weight)),
        out_(out),
        saved_(saved),
        batch_(x_.size(0)),
        length_(x_.size(1)),
        width_(x_.size(2)),
        source_width_(source_.size(2)),
        head_dim_(problem.head_dim),
        row_(round_up(head_dim_, table_.vector_length)),
        rotary_dim_(cosines_.defined() ? cosines_.size(2) : 0),
        panels_(ceil_div(length_, table_.panel)),
        output_panels_(std::max<int64_t>(1, kPassRows / table_.panel)),
        // A KV head that one pair alone reads is computed with it, while its tokens are near.
        fused_(!problem.keys_given() && problem.own_kv_heads()),
        pairs_(problem),
        start_(problem, pairs_) {
    constexpr auto kPacking =
        Operand::kPairs ? PackedHeads::Operand::kBf16Pair : PackedHeads::Operand::kFloat32;
    queries_ = packed_query_heads(problem.weights, problem.heads, head_dim_, kPacking);
    outputs_ = packed_output_heads(problem.weights, problem.heads, head_dim_, kPacking);
    if (problem.keys_given()) {
      k_ = GivenRows(problem.k.to(Operand::kDtype));
      v_ = GivenRows(problem.v.to(Operand::kDtype));
    } else {
      keys_values_ = packed_key_value_heads(problem.weights, problem.kv_heads, head_dim_, kPacking);
    }
    for (const int32_t head : pairs_.list.head_index) {
      output_weights_.push_back(packed(outputs_->at(head, 0)));
    }
    find_samples();
    plan_tasks();
  }

  void run() {
    thread_local Arena shared;
    workspace_ = shared.reserve(queue_->slots() * slot_.floats());
    queue_->run(scratch_.floats(),
                [this](const SampleTask& task, float* scratch) { run_task(task, scratch); });
  }

 private:
  static Packed* packed(float* place) { return reinterpret_cast<Packed*>(place); }
  static const Packed* packed(const float* place) { return reinterpret_cast<const Packed*>(place); }
  // What so many elements along the depth of a product become, and dimensions of a head there.
  static int64_t depth(int64_t elements) { return Operand::depth(elements); }
  int64_t head_depth() const { return depth(head_dim_); }
  // Rows of so many values.
  static int64_t value_rows(int64_t keys) { return depth(keys); }

  // Whether the tokens of a sample are its keys too.
  bool shares_tokens(const Sample& sample) const {
    const CpuPairs::Keys& keys = pairs_.keys[sample.index];
    return !problem_.keys_given() && !problem_.kv.defined() && keys.first == 0 && keys.rows.empty();
  }
  bool packs_keys(const Sample& sample) const {
    return !problem_.keys_given() && !shares_tokens(sample);
  }
  bool keeps_keys() const { return saved_ != nullptr && !problem_.keys_given(); }

  void find_samples() {
    const WorkList& list = pairs_.list;
    samples_.resize(batch_);
    for (int64_t b = 0; b < batch_; ++b) {
      Sample& sample = samples_[b];
      sample.index = b;
      sample.first_pair = list.row_offset[b];
      // Without a pair, all that is left is the start of the output.
      sample.num_pairs = list.row_offset[b + 1] - list.row_offset[b];
      sample.num_keys = pairs_.keys[b].count;
      if (fused_) continue;
      sample.first_kv = pairs_.kv.row_offset[b];
      sample.num_kv = pairs_.kv.row_offset[b + 1] - sample.first_kv;
    }
    // Longest first, so that short samples fill the idle tail of the last threads. The order cannot
    // change a result: every task writes its own block.
    std::stable_sort(samples_.begin(), samples_.end(),
                     [this](const Sample& a, const Sample& b) { return cost(a) > cost(b); });
  }

  int64_t cost(const Sample& sample) const {
    const int64_t of_keys = problem_.keys_given() ? 0 : 2 * sample.num_keys * source_width_;
    return sample.num_pairs * length_ * 2 * (width_ + sample.num_keys) +
           (fused_ ? sample.num_pairs : sample.num_kv) * of_keys;
  }

  void plan_tasks() {
    const int64_t threads = queue_threads();
    const int64_t row_blocks = ceil_div(panels_, output_panels_);
    // One small batch on many threads: cut the columns of the output too.
    const int64_t blocks = std::max<int64_t>(1, batch_ * row_blocks);
    output_parts_ = threads == 1 ? 1 : std::clamp<int64_t>(2 * threads / blocks, 1, 16);
    int64_t most_pairs = 0, most_kv = 0, most_keys = 0;
    bool own_keys = false, holes = false;
    std::vector<SampleTasks> counts;
    for (const Sample& sample : samples_) {
      SampleTasks& tasks = counts.emplace_back();
      most_pairs = std::max(most_pairs, sample.num_pairs);
      most_kv = std::max(most_kv, sample.num_kv);
      if (sample.num_pairs > 0) {
        most_keys = std::max(most_keys, sample.num_keys);
        holes = holes || pairs_.key_rows(sample.index) != nullptr;
        tasks.prepare = panels_;
        if (packs_keys(sample)) {
          own_keys = true;
          tasks.prepare += ceil_div(sample.num_keys, table_.panel);
        }
      }
      tasks.keys = sample.num_kv;
      tasks.pairs = sample.num_pairs;
      tasks.outputs = out_.defined() ? row_blocks * output_parts_ : 0;
    }
    queue_.emplace(std::move(counts), threads);
    place_slot(most_pairs, most_kv, most_keys, own_keys, holes);
  }

  void place_slot(int64_t most_pairs, int64_t most_kv, int64_t most_keys, bool own_keys,
                  bool holes) {
    const int64_t queries = panels_ * table_.panel;
    const int64_t keys = ceil_div(most_keys, table_.panel) * table_.panel;
    if (most_pairs > 0) {
      tokens_ = slot_.place(queries * depth(width_));
      rotary_ = slot_.place(2 * queries * rotary_dim_);
      if (own_keys) {
        key_tokens_ = slot_.place(keys * depth(source_width_));
        key_rotary_ = slot_.place(2 * keys * rotary_dim_);
      }
    }
    const bool copies_values = !problem_.keys_given() || holes || Operand::kPairs;
    k_floats_ = keys * head_depth();
    kv_floats_ = k_floats_ + (copies_values ? round_up(value_rows(most_keys) * row_, 16) : 0);
    kv_ = slot_.place(keeps_keys() ? 0 : most_kv * kv_floats_);
    context_ = slot_.place(queries * most_pairs * head_depth());
    if (most_pairs == 0) return;
    q_ = scratch_.place(saved_ == nullptr ? queries * head_depth() : 0);
    own_kv_ = scratch_.place(fused_ && !keeps_keys() ? kv_floats_ : 0);
    wide_q_ = scratch_.place(widens(problem_.q_transform) ? queries * head_dim_ : 0);
    wide_k_ = scratch_.place(widens(problem_.k_transform) ? keys * head_dim_ : 0);
    if constexpr (Operand::kPairs) {
      attend_ = scratch_.place(kernels_.attend_scratch_floats(most_keys, head_dim_));
    } else {
      attend_ = scratch_.place(kernels_.attend_scratch_floats(most_keys));
    }
  }

  void run_task(const SampleTask& task, float* scratch) {
    switch (task.stage) {
      case Stage::kPrepare:
        return prepare(task);
      case Stage::kKeys:
        return problem_.keys_given() ? place_keys(task) : project_keys(task, scratch);
      case Stage::kPair:
        return attend(task, scratch);
      case Stage::kOutput:
        return sum_heads(task);
    }
  }

  float* slot(int64_t place, int64_t offset) const {
    return workspace_ + place % queue_->slots() * slot_.floats() + offset;
  }
  Rotary rotary(int64_t place, int64_t offset, int64_t floats) const {
    if (rotary_dim_ == 0) return {};
    return {slot(place, offset), slot(place, offset) + floats};
  }

  void prepare(const SampleTask& task) {
    const Sample& sample = samples_[task.place];
    if (task.item == 0) start_.write(sample.index);
    if (sample.num_pairs == 0) return;
    const bool of_keys = task.item >= panels_;
    const int64_t first = (of_keys ? task.item - panels_ : task.item) * table_.panel;
    const int64_t total = of_keys ? sample.num_keys : length_;
    const CpuPairs::Keys& keys = pairs_.keys[sample.index];
    const int64_t row = of_keys ? keys.first : 0;  // of the first token in its tensor
    const int32_t* rows = of_keys && !keys.rows.empty() ? keys.rows.data() + first : nullptr;
    const auto pack = [&]<class Of>(Of, const at::Tensor& tensor, float* panels) {
      const int64_t width = tensor.size(2), at = tensor.size(0) == 1 ? 0 : sample.index;
      const int64_t begin = at * tensor.size(1) + (rows == nullptr ? row + first : 0);
      Of::kernels().pack_tokens(
          {.x = data_of<Of>(tensor, begin * width),
           .rows = rows,
           .panel = reinterpret_cast<typename Of::Packed*>(panels) + first * Of::depth(width),
           .row_stride = width,
           .tokens = std::min(table_.panel, total - first),
           .width = width});
    };
    pack(Operand{}, of_keys ? source_ : x_, slot(task.place, of_keys ? key_tokens_ : tokens_));
    if (rotary_dim_ == 0) return;
    float* angles = slot(task.place, of_keys ? key_rotary_ : rotary_);
    pack(Float32Operand{}, cosines_, angles);
    pack(Float32Operand{}, sines_,
         angles + ceil_div(total, table_.panel) * table_.panel * rotary_dim_);
  }

  // Tokens of one sample, and what is made of them for one head; nullptr = not wanted.
  struct Projection {
    const Packed* tokens;
    int64_t count, width;
    Packed *q, *k, *v;
    float *wide_q, *wide_k;  // of bfloat16: what is transformed before it is rounded
  };

  // Norm and rotary embedding happen in float32.
  static bool widens(const HeadTransform& how) { return Operand::kPairs && !how.empty(); }
  double query_scale() const { return problem_.scale * Operand::kScoreScale; }

  // One weight matrix at a time while the tokens fit into a second-level cache beside it, else one
  // token panel at a time through all of them.
  void project(const Projection& p, int64_t head, int64_t kv_head) const {
    const int64_t step = p.count * depth(p.width) <= kCachedTokens ? p.count : table_.panel;
    for (int64_t first = 0; first < p.count; first += step) {
      typename Operand::Project range{.tokens = p.tokens + first * depth(p.width),
                                      .weights = nullptr,
                                      .bias = nullptr,
                                      .out = nullptr,
                                      .num_tokens = std::min(step, p.count - first),
                                      .width = p.width,
                                      .head_dim = head_dim_,
                                      .scale = 1.0f};
      const auto project_panels = [&](const HeadTransform& how, Packed* out, float* wide) {
        range.out = out + first * head_depth();
        if constexpr (Operand::kPairs) {
          range.wide = widens(how) ? wide + first * head_dim_ : nullptr;
        }
        kernels_.project_panels(range);
      };
      if (p.q != nullptr) {
        range.weights = packed(queries_->at(head, kQueryBlocks));
        range.bias = queries_->at(head, kQueryBias);
        range.scale = problem_.q_transform.empty() ? static_cast<float>(query_scale()) : 1.0f;
        project_panels(problem_.q_transform, p.q, p.wide_q);
      }
      if (p.k == nullptr) continue;
      range.scale = 1.0f;
      range.weights = packed(keys_values_->at(kv_head, kKeyBlocks));
      range.bias = keys_values_->at(kv_head, kKeyBias);
      project_panels(problem_.k_transform, p.k, p.wide_k);
      if constexpr (Operand::kPairs) range.wide = nullptr;
      range.weights = packed(keys_values_->at(kv_head, kValuePanels));
      range.bias = keys_values_->at(kv_head, kValueBias);
      range.out = p.v + value_rows(first) * row_;
      kernels_.project_rows(range);
    }
  }

  // `panels` as `project` left them, in float32 where it `widens`, -> the operand of the scores.
  void transform(const HeadTransform& how, const at::Tensor& norm, const Rotary& rotary,
                 int64_t count, double scale, float* wide, Packed* panels) const {
    if (how.empty()) return;
    float* from = wide;
    if constexpr (!Operand::kPairs) from = panels;
    table_.transform({.panels = from,
                      .norm_weight = norm.defined() ? norm.const_data_ptr<float>() : nullptr,
                      .cosines = rotary.cosines,
                      .sines = rotary.sines,
                      .num_tokens = count,
                      .head_dim = head_dim_,
                      .rotary_dim = rotary_dim_,
                      .norm_eps = static_cast<float>(how.norm_eps),
                      .scale = static_cast<float>(scale)});
    if constexpr (Operand::kPairs) {
      kernels_.round_panels(
          {.panels = wide, .out = panels, .num_tokens = count, .head_dim = head_dim_});
    }
  }
  void transform_queries(int64_t place, int64_t pair, float* wide, Packed* q) const {
    if constexpr (!Operand::kPairs) {
      if (saved_ != nullptr && q_norm_.defined()) {
        std::copy_n(q, panels_ * table_.panel * head_dim_, saved_->projected_q(pair));
      }
    }
    transform(problem_.q_transform, q_norm_,
              rotary(place, rotary_, panels_ * table_.panel * rotary_dim_), length_, query_scale(),
              wide, q);
  }
  void transform_keys(const Sample& sample, int64_t place, int64_t kv, float* wide,
                      Packed* k) const {
    const bool shared = shares_tokens(sample);
    const int64_t key_panels = ceil_div(sample.num_keys, table_.panel);
    if constexpr (!Operand::kPairs) {
      if (keeps_keys() && k_norm_.defined()) {
        std::copy_n(k, key_panels * table_.panel * head_dim_, saved_->projected_k(kv));
      }
    }
    transform(problem_.k_transform, k_norm_,
              rotary(place, shared ? rotary_ : key_rotary_,
                     (shared ? panels_ : key_panels) * table_.panel * rotary_dim_),
              sample.num_keys, 1.0, wide, k);
  }

  const Packed* key_tokens(const Sample& sample, int64_t place) const {
    return packed(slot(place, shares_tokens(sample) ? tokens_ : key_tokens_));
  }

  struct KeysValues {
    Packed *k, *v;
  };
  // Of a KV head that has a task of its own, and of one that is computed with its pair.
  KeysValues shared_room(const Sample& sample, int64_t place, int64_t item) const {
    if (keeps_keys()) return kept_room(sample.first_kv + item);
    Packed* k = packed(slot(place, kv_ + item * kv_floats_));
    return {k, k + k_floats_};
  }
  KeysValues own_room(int64_t pair, float* scratch) const {
    if (keeps_keys()) return kept_room(pair);
    return {packed(scratch + own_kv_), packed(scratch + own_kv_ + k_floats_)};
  }
  KeysValues kept_room(int64_t kv) const { return {packed(saved_->k(kv)), packed(saved_->v(kv))}; }

  void project_keys(const SampleTask& task, float* scratch) const {
    const Sample& sample = samples_[task.place];
    const int64_t kv = sample.first_kv + task.item;
    const KeysValues room = shared_room(sample, task.place, task.item);
    project({.tokens = key_tokens(sample, task.place),
             .count = sample.num_keys,
             .width = source_width_,
             .q = nullptr,
             .k = room.k,
             .v = room.v,
             .wide_q = nullptr,
             .wide_k = scratch + wide_k_},
            -1, pairs_.kv.head_index[kv]);
    transform_keys(sample, task.place, kv, scratch + wide_k_, room.k);
  }

  void place_keys(const SampleTask& task) const {
    const Sample& sample = samples_[task.place];
    const CpuPairs::Keys& keys = pairs_.keys[sample.index];
    const int64_t kv_head = pairs_.kv.head_index[sample.first_kv + task.item];
    const Element* from = k_.template of<Element>(sample.index, kv_head);
    const KeysValues room = shared_room(sample, task.place, task.item);
    for (int64_t first = 0; first < keys.count; first += table_.panel) {
      kernels_.pack_tokens(
          {.x = keys.rows.empty() ? from + (keys.first + first) * k_.stride() : from,
           .rows = keys.rows.empty() ? nullptr : keys.rows.data() + first,
           .panel = room.k + first * head_depth(),
           .row_stride = k_.stride(),
           .tokens = std::min(table_.panel, keys.count - first),
           .width = head_dim_});
    }
    if (!reads_values_in_place(keys)) place_values(sample, kv_head, room.v);
  }

  bool reads_values_in_place(const CpuPairs::Keys& keys) const {
    return !Operand::kPairs && problem_.keys_given() && keys.rows.empty();
  }

  void place_values(const Sample& sample, int64_t kv_head, Packed* to) const {
    const CpuPairs::Keys& keys = pairs_.keys[sample.index];
    const Element* values = v_.template of<Element>(sample.index, kv_head);
    const auto row = [&](int64_t key) {
      return values + (keys.rows.empty() ? keys.first + key : keys.rows[key]) * v_.stride();
    };
    if constexpr (Operand::kPairs) {
      for (int64_t key = 0; key < keys.count; key += 2, to += row_) {
        const Element* low = row(key);
        const Element* high = key + 1 < keys.count ? row(key + 1) : nullptr;
        for (int64_t d = 0; d < head_dim_; ++d) {
          to[d] = low[d] | (high == nullptr ? 0 : static_cast<Packed>(high[d]) << 16);
        }
      }
    } else {
      for (int64_t key = 0; key < keys.count; ++key, to += row_)
        std::copy_n(row(key), head_dim_, to);
    }
  }

  // Keys and values of a pair whose KV head has had its own task.
  void find_shared_keys(const SampleTask& task, int64_t head,
                        typename Operand::Attend& params) const {
    const Sample& sample = samples_[task.place];
    const int64_t item = pairs_.kv_entry(sample.index, head) - sample.first_kv;
    const KeysValues room = shared_room(sample, task.place, item);
    params.k = room.k;
    params.v = room.v;
    if constexpr (!Operand::kPairs) {
      const CpuPairs::Keys& keys = pairs_.keys[sample.index];
      params.v_stride = row_;
      if (!reads_values_in_place(keys)) return;
      params.v = v_.of(sample.index, problem_.kv_head[head]) + keys.first * v_.stride();
      params.v_stride = v_.stride();
    }
  }

  void attend(const SampleTask& task, float* scratch) const {
    const Sample& sample = samples_[task.place];
    const int64_t pair = sample.first_pair + task.item;
    const int64_t head = pairs_.list.head_index[pair];
    Packed* q = packed(saved_ == nullptr ? scratch + q_ : saved_->q(pair));
    Projection queries{.tokens = packed(slot(task.place, tokens_)),
                       .count = length_,
                       .width = width_,
                       .q = q,
                       .k = nullptr,
                       .v = nullptr,
                       .wide_q = scratch + wide_q_,
                       .wide_k = scratch + wide_k_};
    typename Operand::Attend params{};
    if (fused_) {
      const auto [k, v] = own_room(pair, scratch);
      if (shares_tokens(sample) && sample.num_keys == length_) {
        queries.k = k;
        queries.v = v;
      } else {
        project({.tokens = key_tokens(sample, task.place),
                 .count = sample.num_keys,
                 .width = source_width_,
                 .q = nullptr,
                 .k = k,
                 .v = v,
                 .wide_q = nullptr,
                 .wide_k = scratch + wide_k_},
                head, head);
      }
      params.k = k;
      params.v = v;
      if constexpr (!Operand::kPairs) params.v_stride = row_;
    } else {
      find_shared_keys(task, head, params);
    }
    project(queries, head, head);
    transform_queries(task.place, pair, scratch + wide_q_, q);
    if (fused_) {
      transform_keys(sample, task.place, pair, scratch + wide_k_, own_room(pair, scratch).k);
    }
    params.q = q;
    params.context = packed(slot(task.place, context_)) + task.item * head_depth() * table_.panel;
    if constexpr (!Operand::kPairs) {
      if (saved_ != nullptr) {
        params.own_context = saved_->context(pair);
        params.softmax = saved_->softmax(pair);
      }
    }
    params.scratch = scratch + attend_;
    params.scores = pairs_.scores(sample.index, head);
    params.num_tokens = length_;
    params.num_keys = sample.num_keys;
    params.head_dim = head_dim_;
    params.context_stride = context_stride(sample);
    params.gate = pairs_.list.scale[pair];
    kernels_.attend(params);
  }

  int64_t context_stride(const Sample& sample) const {
    return sample.num_pairs * head_depth() * table_.panel;
  }

  void sum_heads(const SampleTask& task) {
    const Sample& sample = samples_[task.place];
    const int64_t first_panel = task.item / output_parts_ * output_panels_;
    const int64_t first = first_panel * table_.panel;
    const int64_t tokens = std::min(output_panels_ * table_.panel, length_ - first);
    typename Operand::SumProjections params{
        .context = packed(slot(task.place, context_)) + first_panel * context_stride(sample),
        .weights = output_weights_.data() + sample.first_pair,
        .start = start_.row(sample.index),
        .out = static_cast<Element*>(out_.mutable_data_ptr()) +
               (sample.index * length_ + first) * width_,
        .num_segments = sample.num_pairs,
        .num_tokens = tokens,
        .width = width_,
        .head_dim = head_dim_,
        .context_stride = context_stride(sample),
        .part = task.item % output_parts_,
        .parts = output_parts_,
    };
    if constexpr (!Operand::kPairs) {
      // The sample that is prepared next.
      const int64_t next = task.place + queue_->slots();
      if (next < batch_ && samples_[next].num_pairs > 0) {
        params.next = data_of<Operand>(x_, (samples_[next].index * length_ + first) * width_);
        params.next_floats = tokens * width_;
      }
    }
    kernels_.sum_projections(params);
  }

  const KernelTable& table_;
  const typename Operand::Kernels& kernels_;
  const AttentionProblem& problem_;
  const at::Tensor x_, source_, cosines_, sines_, q_norm_, k_norm_;
  GivenRows k_, v_;  // if given
  const at::Tensor out_;
  const SavedPairs* const saved_;
  const int64_t batch_, length_, width_, source_width_, head_dim_, row_, rotary_dim_, panels_,
      output_panels_;
  const bool fused_;
  const CpuPairs pairs_;
  OutputStart start_;
  std::shared_ptr<const PackedHeads> queries_, keys_values_, outputs_;
  std::vector<const Packed*> output_weights_;  // of each pair
  std::vector<Sample> samples_;
  std::optional<SampleQueue> queue_;
  int64_t output_parts_ = 1;
  int64_t k_floats_ = 0, kv_floats_ = 0;  // of the keys, and of keys and values, of one head
  Places slot_;                           // what a sample has
  int64_t tokens_ = 0, rotary_ = 0, key_tokens_ = 0, key_rotary_ = 0, kv_ = 0, context_ = 0;
  Places scratch_;  // what a pair has
  int64_t q_ = 0, own_kv_ = 0, wide_q_ = 0, wide_k_ = 0, attend_ = 0;
  float* workspace_ = nullptr;
};

template <class Operand>
at::Tensor run(const AttentionProblem& problem) {
  const at::Tensor out = at::empty(problem.x.sizes(), problem.x.options().dtype(Operand::kDtype));
  if (out.numel() > 0) Launch<Operand>(problem, out, nullptr).run();
  return out.to(problem.x.scalar_type());
}

// Whether given keys are read as they are.
bool has_few_queries(const AttentionProblem& problem) {
  return problem.keys_given() && problem.x.size(1) <= kFewQueries;
}

}  // namespace

std::string attention_cpu_refusal(const AttentionProblem& problem) {
  if (!problem.x.is_cpu()) return "x is on " + problem.x.device().str() + ", not on the CPU";
  if (problem.x.scalar_type() == at::kDouble) {
    return "the CPU kernels sum in float32, x is Double";
  }
  if (problem.gate.defined() && problem.gate.dim() == 3) {
    return "the CPU kernels take one gate for a head of a sample, not [B, T, H]";
  }
  if (problem.dropout_p > 0.0) return "the CPU kernels have no dropout";
  return "";
}

bool runs_in_bf16(const AttentionProblem& problem) {
  return multiplies_bf16(problem.x.scalar_type()) && !has_few_queries(problem);
}

at::Tensor attention_cpu(const AttentionProblem& problem) {
  if (has_few_queries(problem)) return attention_cpu_decode(problem);
  return runs_in_bf16(problem) ? run<Bf16Operand>(problem) : run<Float32Operand>(problem);
}

at::Tensor attention_cpu_saving(const AttentionProblem& problem, const at::Tensor& saved) {
  if (has_few_queries(problem)) {
    // Somebody trains on what decoding computes: the same launch, so the same bits.
    save_pairs(problem, saved);
    return attention_cpu_decode(problem);
  }
  const at::Tensor out = at::empty(problem.x.sizes(), problem.x.options());
  const SavedPairs pairs(problem, saved);
  if (out.numel() > 0) Launch<Float32Operand>(problem, out, &pairs).run();
  return out;
}

void save_pairs(const AttentionProblem& problem, const at::Tensor& saved) {
  const SavedPairs pairs(problem, saved);
  Launch<Float32Operand>(problem, at::Tensor(), &pairs).run();
}

}  // namespace headkit
