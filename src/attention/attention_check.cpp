#include <ATen/ATen.h>

#include <cmath>
#include <string>
#include <utility>

#include "attention/attention_call.h"
#include "headkit/core/error.h"
#include "operators/argument_check.h"

namespace headkit {
namespace {

struct Sizes {
  c10::SymInt batch, length, keys, heads, kv_heads, head_dim;
};

// q_weight, and dh from it.
void check_queries(const ArgumentCheck& check, const AttentionCall& call, Sizes& sizes) {
  const at::Tensor& weight = call.q_weight;
  HEADKIT_CHECK(weight.defined(), check.operation(), "q_weight", "none");
  HEADKIT_CHECK(
      weight.dim() == 2 && (call.num_heads == 0 ? check.equal(weight.sym_size(0), 0)
                                                : check.equal(weight.sym_size(0) % sizes.heads, 0)),
      check.operation(), "q_weight of shape [H * dh, D]", "shape ", weight.sym_sizes(),
      " with H = ", sizes.heads);
  const c10::SymInt rows = weight.sym_size(0);
  check.tensor(weight, "q_weight", "[H * dh, D]", {rows, call.x.sym_size(2)});
  if (call.q_bias) check.tensor(*call.q_bias, "q_bias", "[H * dh]", {rows});
  if (call.num_heads > 0) sizes.head_dim = rows / sizes.heads;
}

void check_given_keys(const ArgumentCheck& check, const AttentionCall& call, Sizes& sizes) {
  const at::Tensor& k = call.k;
  HEADKIT_CHECK(k.defined() && k.dim() == 4, check.operation(), "k of shape [B, Hkv, S, dh]",
                "shape ", k.defined() ? k.sym_sizes() : c10::SymIntArrayRef(), check.context());
  sizes.kv_heads = k.sym_size(1);
  sizes.keys = k.sym_size(2);
  if (call.num_heads == 0) sizes.head_dim = k.sym_size(3);
  for (const auto& [tensor, name] : {std::pair(k, "k"), std::pair(call.v, "v")}) {
    check.tensor(tensor, name, "[B, Hkv, S, dh]",
                 {sizes.batch, sizes.kv_heads, sizes.keys, sizes.head_dim});
  }
}

void check_projected_keys(const ArgumentCheck& check, const AttentionCall& call, Sizes& sizes) {
  const int64_t kv_heads = call.num_kv_heads.value_or(call.num_heads);
  HEADKIT_CHECK(kv_heads >= 0, check.operation(), "num_kv_heads >= 0", kv_heads);
  sizes.kv_heads = kv_heads;
  if (call.kv) {
    HEADKIT_CHECK(call.kv->dim() == 3 && check.equal(call.kv->sym_size(0), sizes.batch),
                  check.operation(), "kv of shape [B, S, Dk]", "shape ", call.kv->sym_sizes(),
                  check.context());
    check.dtype(*call.kv, "kv");
    check.device_and_layout(*call.kv, "kv");
  }
  const at::Tensor& source = call.kv ? *call.kv : call.x;
  sizes.keys = source.sym_size(1);
  const at::Tensor& weight = call.k_weight;
  if (call.num_heads == 0 && kv_heads > 0 && weight.defined() && weight.dim() == 2) {
    sizes.head_dim = weight.sym_size(0) / kv_heads;
  }
  const c10::SymInt rows = sizes.head_dim * sizes.kv_heads;
  HEADKIT_CHECK(!weight.defined() || (weight.dim() == 2 && check.equal(weight.sym_size(0), rows)),
                check.operation(), "k_weight of shape [Hkv * dh, Dk]", "shape ", weight.sym_sizes(),
                " with Hkv = ", kv_heads, " and dh = ", sizes.head_dim);
  check.tensor(weight, "k_weight", "[Hkv * dh, Dk]", {rows, source.sym_size(2)});
  check.tensor(call.v_weight, "v_weight", "[Hkv * dh, Dk]", {rows, source.sym_size(2)});
  if (call.k_bias) check.tensor(*call.k_bias, "k_bias", "[Hkv * dh]", {rows});
  if (call.v_bias) check.tensor(*call.v_bias, "v_bias", "[Hkv * dh]", {rows});
  HEADKIT_CHECK(!call.kv || !(call.rotary_cos || call.rotary_sin), check.operation(),
                "rotary embeddings without kv (they are for self-attention)", "both");
}

void check_kv_head(const AttentionCall& call, const c10::SymInt& kv_heads) {
  if (!call.kv_head) {
    HEADKIT_CHECK(
        call.num_heads == 0 || (kv_heads > 0 && c10::SymInt(call.num_heads) % kv_heads == 0),
        call.operation(), "num_heads divisible by num_kv_heads, or kv_head",
        "num_heads = ", call.num_heads, " with ", kv_heads, " KV heads");
    return;
  }
  HEADKIT_CHECK(static_cast<int64_t>(call.kv_head->size()) == call.num_heads, call.operation(),
                "kv_head with " + std::to_string(call.num_heads) + " entries, one for each head",
                call.kv_head->size());
  for (const int64_t kv_head : *call.kv_head) {
    HEADKIT_CHECK(kv_head >= 0 && kv_heads > kv_head, call.operation(), "every kv_head in [0, Hkv)",
                  kv_head, " with Hkv = ", kv_heads);
  }
}

void check_gate(const ArgumentCheck& check, const at::Tensor& gate, const at::Tensor& x,
                const Sizes& sizes) {
  const bool fits = gate.dim() == 1 ? check.has_shape(gate, {sizes.heads})
                    : gate.dim() == 2
                        ? check.has_shape(gate, {sizes.batch, sizes.heads})
                        : check.has_shape(gate, {sizes.batch, sizes.length, sizes.heads});
  HEADKIT_CHECK(fits, check.operation(), "gate of shape [H], [B, H] or [B, T, H]", "shape ",
                gate.sym_sizes(), check.context(), " and H = ", sizes.heads);
  const bool double_pair = gate.scalar_type() == at::kDouble && x.scalar_type() == at::kDouble;
  HEADKIT_CHECK(gate.scalar_type() == at::kFloat || double_pair, check.operation(),
                "gate of dtype Float (or Double when x is Double)", "dtype ", gate.scalar_type(),
                " with x of dtype ", x.scalar_type());
  check.device_and_layout(gate, "gate");
}

void check_scores(const ArgumentCheck& check, const AttentionCall& call, const Sizes& sizes) {
  if (const auto& mask = call.key_padding_mask) {
    HEADKIT_CHECK(
        mask->scalar_type() == at::kBool && check.has_shape(*mask, {sizes.batch, sizes.keys}),
        check.operation(), "key_padding_mask (true = attend) of shape [B, S] and dtype Bool",
        "shape ", mask->sym_sizes(), " and dtype ", mask->scalar_type(), check.context(),
        " and S = ", sizes.keys);
    check.device_and_layout(*mask, "key_padding_mask");
  }
  if (const auto& bias = call.attn_bias) {
    HEADKIT_CHECK(check.broadcasts_to(*bias, {sizes.batch, sizes.heads, sizes.length, sizes.keys}),
                  check.operation(), "attn_bias broadcastable to [B, H, T, S]", "shape ",
                  bias->sym_sizes(), check.context(), ", H = ", sizes.heads,
                  " and S = ", sizes.keys);
    check.dtype(*bias, "attn_bias");
    check.device_and_layout(*bias, "attn_bias");
  }
  HEADKIT_CHECK(!call.scale || std::isfinite(*call.scale), check.operation(), "a finite scale",
                *call.scale);
  HEADKIT_CHECK(!call.window || *call.window >= 1, check.operation(), "a window of at least 1",
                *call.window);
  HEADKIT_CHECK(call.query_offset >= 0, check.operation(), "query_offset of at least 0",
                call.query_offset);
  HEADKIT_CHECK(call.dropout_p >= 0.0 && call.dropout_p < 1.0, check.operation(),
                "dropout_p in [0, 1)", call.dropout_p);
}

}  // namespace

void check_call(const AttentionCall& call) {
  const at::Tensor& x = call.x;
  const ArgumentCheck check(call.operation(), "x", "[B, T, D]", x);
  HEADKIT_CHECK(call.num_heads >= 0, check.operation(), "num_heads >= 0", call.num_heads);
  Sizes sizes;
  sizes.batch = x.sym_size(0);
  sizes.length = x.sym_size(1);
  sizes.heads = call.num_heads;
  check_queries(check, call, sizes);
  if (call.keys_given) {
    check_given_keys(check, call, sizes);
  } else {
    check_projected_keys(check, call, sizes);
  }
  check_kv_head(call, sizes.kv_heads);
  const c10::SymInt width = x.sym_size(2);
  check.tensor(call.o_weight, "o_weight", "[D, H * dh]", {width, sizes.heads * sizes.head_dim});
  if (call.o_bias) check.tensor(*call.o_bias, "o_bias", "[D]", {width});
  if (call.dropped_output) {
    check.tensor(*call.dropped_output, "dropped_output", "[H, D]", {sizes.heads, width});
  }
  if (call.gate) check_gate(check, *call.gate, x, sizes);
  check_scores(check, call, sizes);
  // Without heads nothing may say what dh is.
  if (call.num_heads > 0) {
    check.rotary(call.rotary_cos, call.rotary_sin, "T", sizes.length, sizes.head_dim);
    check.norm(call.q_norm_weight, "q_norm_weight", sizes.head_dim, call.norm_eps);
    check.norm(call.k_norm_weight, "k_norm_weight", sizes.head_dim, call.norm_eps);
  }
}

}  // namespace headkit
