// Random calls of gated_attention and attend, legal and illegal. A legal one must agree with the
// oracle in float64, forward and backward; an illegal one must throw std::invalid_argument. Some
// are in bfloat16.
//
//     attention_fuzz [runs] [first seed]
#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <cstdlib>
#include <functional>
#include <iostream>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "headkit/attention/gated_attention.h"
#include "headkit/attention/key_values.h"
#include "headkit/attention/reference.h"

namespace headkit {
namespace {

struct Call {
  at::Tensor x;
  AttentionWeights weights;
  int64_t heads;
  AttentionInput input;
};

class Draw {
 public:
  explicit Draw(uint32_t seed) : generator_(seed) { at::manual_seed(seed); }

  int64_t between(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(generator_);
  }
  bool chance(double probability) { return std::bernoulli_distribution(probability)(generator_); }
  at::Tensor normal(at::IntArrayRef shape) { return at::randn(shape); }

 private:
  std::mt19937 generator_;
};

Call draw_legal(Draw& draw) {
  const int64_t batch = draw.between(0, 3), length = draw.between(0, 60);
  const int64_t kv_heads = draw.between(1, 3), head_dim = draw.between(1, 40);
  const int64_t heads = kv_heads * draw.between(1, 3), width = draw.between(1, 50);
  const bool given = draw.chance(0.3), cross = !given && draw.chance(0.3);
  const int64_t source_width = cross ? draw.between(1, 40) : width;
  const int64_t keys = given || cross ? draw.between(0, 700) : length;
  const int64_t inner = heads * head_dim, kv_inner = kv_heads * head_dim;
  Call call;
  call.heads = heads;
  call.x = draw.normal({batch, length, width});
  call.weights.q = draw.normal({inner, width}) * 0.3;
  call.weights.o = draw.normal({width, inner}) * 0.3;
  if (draw.chance(0.5)) call.weights.q_bias = draw.normal({inner});
  if (draw.chance(0.5)) call.weights.o_bias = draw.normal({width});
  if (given) {
    call.input.keys_values(draw.normal({batch, kv_heads, keys, head_dim}),
                           draw.normal({batch, kv_heads, keys, head_dim}));
    call.input.query_offset(draw.between(0, keys));
  } else {
    call.weights.k = draw.normal({kv_inner, source_width}) * 0.3;
    call.weights.v = draw.normal({kv_inner, source_width}) * 0.3;
    if (draw.chance(0.5)) call.weights.k_bias = draw.normal({kv_inner});
    if (draw.chance(0.5)) call.weights.v_bias = draw.normal({kv_inner});
    call.input.num_kv_heads(kv_heads);
    if (cross) call.input.kv(draw.normal({batch, keys, source_width}));
  }
  if (draw.chance(0.7)) {
    const at::Tensor gate = draw.normal({batch, heads});
    call.input.gate(gate * at::rand({batch, heads}).gt(0.5)).skip(draw.chance(0.8));
    if (draw.chance(0.5)) call.input.dropped_output(draw.normal({heads, width}));
  }
  if (draw.chance(0.4)) call.input.key_padding_mask(at::rand({batch, keys}).gt(0.4));
  call.input.is_causal(draw.chance(0.4));
  if (draw.chance(0.3)) call.input.window(draw.between(1, 80));
  if (draw.chance(0.3)) {
    call.input.attn_bias(draw.normal({draw.chance(0.5) ? batch : 1, draw.chance(0.5) ? heads : 1,
                                      draw.chance(0.5) ? length : 1, keys}));
  }
  if (!cross && draw.chance(0.3) && head_dim > 1) {
    const std::vector<int64_t> shape = {draw.chance(0.5) ? batch : 1, length,
                                        draw.between(1, head_dim / 2) * 2};
    call.input.rotary(draw.normal(shape), draw.normal(shape));
  }
  if (draw.chance(0.2)) call.input.q_norm(draw.normal({head_dim}));
  if (draw.chance(0.3)) call.input.scale(draw.between(-3, 3) * 0.25);
  return call;
}

using Break = std::pair<std::string, std::function<void(Call&)>>;

// Each makes a legal call illegal, whatever it is.
std::vector<Break> ways_to_break() {
  const auto wrong = [](std::optional<at::Tensor>& tensor, at::IntArrayRef shape) {
    tensor = at::ones(shape);
  };
  return {
      {"x of two dimensions", [](Call& c) { c.x = at::ones({3, c.x.size(2)}); }},
      {"x of integers", [](Call& c) { c.x = c.x.to(at::kLong); }},
      {"no weight of q", [](Call& c) { c.weights.q.reset(); }},
      {"a weight of q that is too wide",
       [](Call& c) { c.weights.q = at::ones({c.weights.q.size(0), c.x.size(2) + 1}); }},
      {"heads that do not divide", [](Call& c) { c.heads = c.weights.q.size(0) + 1; }},
      {"negative heads", [](Call& c) { c.heads = -1; }},
      {"an output weight in float64", [](Call& c) { c.weights.o = c.weights.o.to(at::kDouble); }},
      {"a bias of the wrong length",
       [](Call& c) { c.weights.o_bias = at::ones({c.x.size(2) + 1}); }},
      {"a gate for one head more",
       [wrong](Call& c) { wrong(c.input.gate_, {c.x.size(0), c.heads + 1}); }},
      {"a gate that is not a number",
       [](Call& c) { c.input.gate(at::full({c.heads}, std::nan(""))); }},
      {"an infinite gate", [](Call& c) { c.input.gate(at::full({c.heads}, INFINITY)); }},
      {"a padding mask of floats",
       [wrong](Call& c) { wrong(c.input.key_padding_mask_, {c.x.size(0), 5}); }},
      {"a window of nothing", [](Call& c) { c.input.window(0); }},
      {"a bias of scores of five dimensions",
       [wrong](Call& c) { wrong(c.input.attn_bias_, {1, 1, 1, 1, 1}); }},
      {"a bias of scores for two batches more",
       [wrong](Call& c) { wrong(c.input.attn_bias_, {c.x.size(0) + 2, 1, 1, 1}); }},
      {"dropped outputs that are too wide",
       [wrong](Call& c) { wrong(c.input.dropped_output_, {c.heads, c.x.size(2) + 1}); }},
      {"cosines without sines",
       [wrong](Call& c) {
         wrong(c.input.rotary_cos_, {1, c.x.size(1), 2});
         c.input.rotary_sin_.reset();
       }},
      {"dropout of everything", [](Call& c) { c.input.dropout(1.5, 0); }},
  };
}

at::Tensor in_dtype(const at::Tensor& tensor, at::ScalarType dtype) {
  return tensor.defined() && tensor.is_floating_point() ? tensor.detach().to(dtype) : tensor;
}

Call in_dtype(const Call& call, at::ScalarType dtype) {
  Call cast = call;
  cast.x = in_dtype(call.x, dtype);
  AttentionWeights& w = cast.weights;
  for (at::Tensor* tensor : {&w.q, &w.k, &w.v, &w.o, &w.q_bias, &w.k_bias, &w.v_bias, &w.o_bias}) {
    *tensor = in_dtype(*tensor, dtype);
  }
  AttentionInput& in = cast.input;
  for (auto* tensor : {&in.attn_bias_, &in.dropped_output_, &in.kv_, &in.keys_, &in.values_,
                       &in.rotary_cos_, &in.rotary_sin_, &in.q_norm_weight_}) {
    if (*tensor) *tensor = in_dtype(**tensor, dtype);
  }
  // A gate keeps its digits beside reduced precision.
  if (in.gate_ && dtype == at::kDouble) *in.gate_ = in_dtype(*in.gate_, dtype);
  return cast;
}

// What a gradient is taken for.
std::vector<at::Tensor> leaves_of(Call& call) {
  std::vector<at::Tensor> leaves;
  const auto add = [&](at::Tensor& tensor) {
    if (tensor.defined()) leaves.push_back(tensor.requires_grad_());
  };
  AttentionWeights& w = call.weights;
  for (at::Tensor* tensor : {&call.x, &w.q, &w.k, &w.v, &w.o, &w.q_bias, &w.v_bias}) add(*tensor);
  AttentionInput& in = call.input;
  for (auto* tensor : {&in.gate_, &in.attn_bias_, &in.dropped_output_, &in.kv_, &in.keys_,
                       &in.values_, &in.q_norm_weight_}) {
    if (*tensor) add(**tensor);
  }
  return leaves;
}

using Function = at::Tensor (*)(const at::Tensor&, const AttentionWeights&, int64_t,
                                const AttentionInput&);

// The output, then the gradients.
std::vector<at::Tensor> results(Function run, Call call, const at::Tensor& seed) {
  const std::vector<at::Tensor> leaves = leaves_of(call);
  const at::Tensor y = run(call.x, call.weights, call.heads, call.input);
  std::vector<at::Tensor> all = {y.detach()};
  const auto gradients = torch::autograd::grad({y}, leaves, {seed.to(y.scalar_type())}, {}, false,
                                               /*allow_unused=*/true);
  const std::optional<at::Tensor>& gate = call.input.gate_;
  for (size_t i = 0; i < leaves.size(); ++i) {
    const at::Tensor found = gradients[i].defined() ? gradients[i] : at::zeros_like(leaves[i]);
    // A closed gate that is skipped gets the gradient 0; the oracle skips nothing.
    const bool skips = gate && gate->is_same(leaves[i]) && call.input.skip_;
    all.push_back(skips ? found * gate->detach().ne(0) : found);
  }
  return all;
}

bool agrees(const Call& call) {
  const Call wide = in_dtype(call, at::kDouble);
  const bool reduced = call.x.scalar_type() == at::kBFloat16;
  const at::Tensor seed = at::randn(call.x.sizes()).to(call.x.scalar_type());
  const auto found = results(gated_attention, call, seed);
  const auto exact = results(reference_attention, wide, seed);
  std::vector<at::Tensor> dense;
  if (reduced) dense = results(reference_attention, call, seed);
  for (size_t i = 0; i < found.size(); ++i) {
    if (found[i].sizes() != exact[i].sizes()) return false;
    if (found[i].numel() == 0) continue;
    const at::Tensor& truth = exact[i];
    const double size = truth.abs().max().item<double>();
    const double error = (found[i] - truth).abs().max().item<double>();
    double allowed = 2e-4 * std::max(1.0, size);
    if (reduced) {
      const double of_dense = (dense[i] - truth).abs().max().item<double>();
      allowed = 4.0 * of_dense + 0.03 * std::max(1.0, size);
    }
    if (!(error <= allowed)) {
      std::cerr << "result " << i << " differs by " << error << " of " << size << "\n";
      return false;
    }
  }
  return true;
}

bool is_refused(const Call& call) {
  try {
    gated_attention(call.x, call.weights, call.heads, call.input);
  } catch (const std::invalid_argument&) {
    return true;
  }
  return false;
}

bool run_one(uint32_t seed) {
  Draw draw(seed);
  Call call = draw_legal(draw);
  if (draw.chance(0.3)) call = in_dtype(call, at::kBFloat16);
  if (draw.chance(0.7)) return agrees(call);
  const std::vector<Break> ways = ways_to_break();
  const Break& way = ways[draw.between(0, static_cast<int64_t>(ways.size()) - 1)];
  way.second(call);
  if (is_refused(call)) return true;
  std::cerr << "not refused: " << way.first << "\n";
  return false;
}

}  // namespace
}  // namespace headkit

int main(int argc, char** argv) {
  const int64_t runs = argc > 1 ? std::atoll(argv[1]) : 200;
  const int64_t first = argc > 2 ? std::atoll(argv[2]) : 0;
  int64_t failed = 0;
  for (int64_t seed = first; seed < first + runs; ++seed) {
    bool good = false;
    try {
      good = headkit::run_one(static_cast<uint32_t>(seed));
    } catch (const std::exception& error) {
      std::cerr << error.what() << "\n";
    }
    if (good) continue;
    ++failed;
    std::cerr << "seed " << seed << " failed\n";
  }
  std::cout << runs - failed << " of " << runs << " random calls behaved\n";
  return failed == 0 ? 0 : 1;
}
