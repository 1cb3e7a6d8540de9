#include "headkit/explain/attention_rows.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "attention/attention_call.h"
#include "attention/reference_scores.h"
#include "headkit/core/error.h"

namespace headkit {
namespace {

constexpr char kName[] = "attention_rows";
constexpr double kNoKey = -1e4;  // a bias that no score makes up for: exp underflows

bool is_narrow(at::ScalarType type) { return type != at::kFloat && type != at::kDouble; }

void widen(at::Tensor& tensor) {
  if (tensor.defined() && is_narrow(tensor.scalar_type())) tensor = tensor.to(at::kFloat);
}
void widen(std::optional<at::Tensor>& tensor) {
  if (tensor && tensor->is_floating_point()) widen(*tensor);
}

// The call without gates, in float32 or float64.
AttentionProblem dense_problem(AttentionBlockCall call) {
  AttentionInput& input = call.input;
  input.gate_.reset();
  input.dropped_output_.reset();
  input.dropout_p_ = 0;
  AttentionWeights& w = call.weights;
  for (at::Tensor* tensor :
       {&call.x, &w.q, &w.k, &w.v, &w.o, &w.q_bias, &w.k_bias, &w.v_bias, &w.o_bias}) {
    widen(*tensor);
  }
  for (std::optional<at::Tensor>* tensor :
       {&input.attn_bias_, &input.kv_, &input.keys_, &input.values_, &input.rotary_cos_,
        &input.rotary_sin_, &input.q_norm_weight_, &input.k_norm_weight_}) {
    widen(*tensor);
  }
  return make_problem(make_call(call.x, w, call.num_heads, input));
}

// One past the last true entry of bool [N].
int64_t length_of(const at::Tensor& valid) {
  const at::Tensor places = valid.nonzero();
  return places.size(0) == 0 ? 0 : places[places.size(0) - 1].item<int64_t>() + 1;
}

// Entries first .. first + count - 1 along an axis; an axis of size 1 stands for all of them.
at::Tensor cut(const at::Tensor& tensor, int64_t axis, int64_t first, int64_t count) {
  if (!tensor.defined() || tensor.size(axis) == 1) return tensor;
  return tensor.narrow(axis, first, count);
}

// A sample with its first queries and keys.
AttentionProblem sample_of(const AttentionProblem& problem, int64_t sample, int64_t queries,
                           int64_t keys) {
  AttentionProblem one = problem;
  one.x = problem.x.narrow(0, sample, 1).narrow(1, 0, queries);
  one.num_keys = keys;
  if (problem.kv.defined()) one.kv = problem.kv.narrow(0, sample, 1).narrow(1, 0, keys);
  if (problem.keys_given()) {
    one.k = problem.k.narrow(0, sample, 1).narrow(2, 0, keys);
    one.v = problem.v.narrow(0, sample, 1).narrow(2, 0, keys);
  }
  if (problem.key_padding_mask.defined()) {
    one.key_padding_mask = problem.key_padding_mask.narrow(0, sample, 1).narrow(1, 0, keys);
  }
  if (problem.attn_bias.defined()) {
    const at::Tensor own = cut(problem.attn_bias, 0, sample, 1);
    one.attn_bias = cut(cut(own, 2, 0, queries), 3, 0, keys);
  }
  for (HeadTransform* transform : {&one.q_transform, &one.k_transform}) {
    for (at::Tensor* turn : {&transform->rotary_cos, &transform->rotary_sin}) {
      if (turn->defined()) *turn = cut(*turn, 0, sample, 1).narrow(1, 0, queries);
    }
  }
  return one;
}

// |a W_O^T| from W_O^T W_O of each head, [H, dh, dh]: [h, T].
at::Tensor norms_of(const at::Tensor& context, const at::Tensor& grams) {
  return context.matmul(grams).mul_(context).sum(-1).clamp_min_(0).sqrt_();
}

at::Tensor grams_of(const AttentionProblem& problem) {
  const at::Tensor o =
      problem.weights.o.view({problem.x.size(2), problem.heads, problem.head_dim}).transpose(0, 1);
  return o.transpose(1, 2).matmul(o);
}

// One block of a batch, sample by sample.
class BlockRows {
 public:
  BlockRows(const AttentionBlockCall& call, const at::Tensor& valid, bool output_norms)
      : problem_(dense_problem(call)), cross_(call.input.kv_.has_value()) {
    valid_ = valid.defined() ? valid.to(at::kCPU, at::kBool)
                             : at::ones({problem_.x.size(0), problem_.x.size(1)}, at::kBool);
    keys_ = problem_.key_padding_mask.defined()
                ? problem_.key_padding_mask.to(at::kCPU)
                : at::ones({problem_.x.size(0), problem_.num_keys}, at::kBool);
    if (output_norms && problem_.heads > 0) grams_ = grams_of(problem_);
  }

  void fill(int64_t sample, SampleAttention& rows) const {
    rows.cross = cross_;
    rows.block_queries = problem_.x.size(1);
    rows.block_keys = problem_.num_keys;
    int64_t queries = length_of(valid_[sample]), keys = length_of(keys_[sample]);
    // The same tokens are queries and keys; one that is no key may still be a query.
    if (!cross_ && !problem_.keys_given()) queries = keys = std::max(queries, keys);
    if (queries == 0 || keys == 0 || problem_.heads == 0) {
      rows.probabilities = at::zeros({problem_.heads, queries, keys}, at::kFloat);
      rows.key_allowed = at::zeros({1, queries, keys}, at::kBool);
      rows.query_valid = at::zeros({queries}, at::kBool);
      if (grams_.defined()) rows.output_norm = at::zeros({problem_.heads, queries}, at::kFloat);
      return;
    }
    const AttentionProblem one = sample_of(problem_, sample, queries, keys);
    const ReferenceScores scores = reference_scores(one);
    at::Tensor allowed = scores.allowed;
    if (one.attn_bias.defined()) allowed = allowed.logical_and(one.attn_bias.gt(kNoKey));
    allowed = allowed.expand({1, allowed.size(1), queries, keys}).squeeze(0);
    const at::Tensor probabilities = scores.probabilities().squeeze(0);
    if (grams_.defined()) {
      rows.output_norm = norms_of(probabilities.matmul(scores.v.squeeze(0)), grams_)
                             .to(at::kCPU, at::kFloat)
                             .contiguous();
    }
    rows.probabilities = probabilities.to(at::kCPU, at::kFloat).contiguous();
    rows.key_allowed = allowed.to(at::kCPU).contiguous();
    rows.query_valid =
        valid_[sample].narrow(0, 0, queries).logical_and(rows.key_allowed.any(-1).any(0));
  }

 private:
  AttentionProblem problem_;
  at::Tensor valid_, keys_, grams_;
  bool cross_;
};

}  // namespace

void for_each_attention(GatedModel& model, const DataSource& data,
                        const AttentionRowOptions& options,
                        const std::function<void(const SampleAttention&)>& visit) {
  const c10::NoGradGuard no_grad;
  const HeadMask present = model.heads();
  const int64_t layers = model.layout().layers;
  model.check(kName, -1, options.gates);
  const auto mode = model.evaluating();
  int64_t first = 0, batches = 0;
  data.for_each([&](const Batch& batch) {
    const int64_t samples = batch_size(batch);
    if (samples > 0) {
      model.check(kName, samples, options.gates);
      Taps seen{.attention_calls = true};
      model.run(model.embed(batch), 0, layers, options.gates, &seen);
      HEADKIT_CHECK(static_cast<int64_t>(seen.attention_call.size()) == layers &&
                        seen.valid.size() == seen.attention_call.size(),
                    kName, "a model that shows the calls of all attention blocks",
                    seen.attention_call.size(), " of ", layers);
      std::vector<BlockRows> blocks;
      for (int64_t l = 0; l < layers; ++l) {
        blocks.emplace_back(seen.attention_call[l], seen.valid[l], options.output_norms);
      }
      for (int64_t b = 0; b < samples; ++b) {
        for (int64_t l = 0; l < layers; ++l) {
          SampleAttention rows;
          rows.sample = first + b;
          rows.layer = l;
          rows.heads = present.layer_heads(l);
          rows.batch = &batch;
          rows.row = b;
          blocks[static_cast<size_t>(l)].fill(b, rows);
          visit(rows);
        }
      }
      first += samples;
    }
    if (options.progress) options.progress(++batches, data.size().value_or(-1));
  });
}

}  // namespace headkit
