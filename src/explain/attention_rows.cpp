#include "headkit/explain/attention_rows.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <optional>

#include "attention/attention_call.h"
#include "attention/key_positions.h"
#include "headkit/core/error.h"

namespace headkit {
namespace {

constexpr char kName[] = "attention_rows";
constexpr int64_t kRowsAtOnce = 1024;  // tokens that are projected at once
constexpr double kNoKey = -1e4;        // a bias that no score makes up for: exp underflows

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

at::Tensor project(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                   int64_t heads) {
  const at::Tensor projected =
      at::linear(x, weight, bias.defined() ? std::optional(bias) : std::nullopt);
  return projected.unflatten(-1, {heads, -1}).transpose(1, 2);
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

  // Queries, keys and values of the samples first .. first + count - 1.
  void project_samples(int64_t first, int64_t count) {
    first_ = first;
    if (problem_.heads == 0) return;
    const AttentionWeights& w = problem_.weights;
    const auto turned = [&](HeadTransform transform, const at::Tensor& heads) {
      for (at::Tensor* turn : {&transform.rotary_cos, &transform.rotary_sin}) {
        if (turn->defined()) *turn = cut(*turn, 0, first, count);
      }
      return transform.apply(heads);
    };
    const at::Tensor x = problem_.x.narrow(0, first, count);
    q_ = turned(problem_.q_transform, project(x, w.q, w.q_bias, problem_.heads)) * problem_.scale;
    if (problem_.keys_given()) {
      k_ = problem_.k.narrow(0, first, count);
      v_ = problem_.v.narrow(0, first, count);
      return;
    }
    const at::Tensor source = problem_.source().narrow(0, first, count);
    k_ = turned(problem_.k_transform, project(source, w.k, w.k_bias, problem_.kv_heads));
    if (grams_.defined()) v_ = project(source, w.v, w.v_bias, problem_.kv_heads);
  }

  // A sample of those.
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
      if (grams_.defined()) {
        rows.output_norm = at::zeros({problem_.heads, queries}, at::kFloat);
        rows.value_norm = at::zeros({problem_.heads, keys}, at::kFloat);
      }
      return;
    }
    const at::Tensor q = q_[sample - first_].narrow(1, 0, queries);
    at::Tensor probabilities = q.matmul(heads_of(k_, sample, keys).transpose(1, 2));
    at::Tensor bias;
    if (problem_.attn_bias.defined()) {
      bias = cut(cut(cut(problem_.attn_bias, 0, sample, 1)[0], 1, 0, queries), 2, 0, keys);
      probabilities.add_(bias);
    }
    const at::Tensor allowed = allowed_keys(sample, queries, keys, bias);
    if (allowed.defined()) {
      probabilities.masked_fill_(allowed.logical_not(), -std::numeric_limits<double>::infinity());
    }
    probabilities = probabilities.softmax(-1);
    rows.query_valid = valid_[sample].narrow(0, 0, queries);
    if (allowed.defined()) {
      const at::Tensor sees = allowed.any(-1);
      if (!sees.all().item<bool>()) {
        probabilities.masked_fill_(sees.logical_not().unsqueeze(-1), 0);
        rows.query_valid = rows.query_valid.logical_and(sees.any(0).to(at::kCPU));
      }
      rows.key_allowed = allowed.expand({allowed.size(0), queries, keys}).to(at::kCPU).contiguous();
    } else {
      rows.key_allowed = at::ones({1, queries, keys}, at::kBool);
    }
    if (grams_.defined()) {
      const at::Tensor v = heads_of(v_, sample, keys);
      rows.output_norm =
          norms_of(probabilities.matmul(v), grams_).to(at::kCPU, at::kFloat).contiguous();
      rows.value_norm = norms_of(v, grams_).to(at::kCPU, at::kFloat).contiguous();
    }
    rows.probabilities = probabilities.to(at::kCPU, at::kFloat).contiguous();
  }

 private:
  // [H, keys, dh] of [count, Hkv, S, dh].
  at::Tensor heads_of(const at::Tensor& tensor, int64_t sample, int64_t keys) const {
    const at::Tensor own = tensor[sample - first_].narrow(1, 0, keys);
    if (problem_.own_kv_heads()) return own;
    return own.index_select(
        0, at::tensor(problem_.kv_head, at::TensorOptions(at::kLong)).to(own.device()));
  }

  // Bool, broadcastable to [H, T, S]; undefined = every query may see every key.
  at::Tensor allowed_keys(int64_t sample, int64_t queries, int64_t keys,
                          const at::Tensor& bias) const {
    at::Tensor allowed;
    const auto narrow = [&](const at::Tensor& also) {
      allowed = allowed.defined() ? allowed.logical_and(also) : also;
    };
    const at::Tensor valid = keys_[sample].narrow(0, 0, keys);
    if (!valid.all().item<bool>()) narrow(valid.to(problem_.x.device()).reshape({1, 1, keys}));
    if (bias.defined()) {
      const at::Tensor seen = bias.gt(kNoKey);
      if (!seen.all().item<bool>()) narrow(seen);
    }
    if (problem_.is_causal || problem_.window) {
      AttentionProblem one = problem_;
      one.x = problem_.x.narrow(1, 0, queries);
      one.num_keys = keys;
      const at::Tensor position = position_mask(one, {0, keys});
      if (position.defined()) narrow(position.unsqueeze(0));
    }
    return allowed;
  }

  AttentionProblem problem_;
  at::Tensor valid_, keys_, grams_;
  at::Tensor q_, k_, v_;  // [count, heads, T or S, dh]
  int64_t first_ = 0;
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
      const int64_t longest = std::max<int64_t>(1, seen.attention_call.front().x.size(1));
      const int64_t at_once = std::max<int64_t>(1, kRowsAtOnce / longest);
      for (int64_t b = 0; b < samples; ++b) {
        for (int64_t l = 0; l < layers; ++l) {
          BlockRows& block = blocks[static_cast<size_t>(l)];
          if (b % at_once == 0) block.project_samples(b, std::min(at_once, samples - b));
          SampleAttention rows;
          rows.sample = first + b;
          rows.layer = l;
          rows.heads = present.layer_heads(l);
          rows.batch = &batch;
          rows.row = b;
          block.fill(b, rows);
          visit(rows);
        }
      }
      first += samples;
    }
    if (options.progress) options.progress(++batches, data.size().value_or(-1));
  });
}

}  // namespace headkit
