#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "headkit/attention/gated_attention.h"
#include "headkit/attention/pair_statistics.h"
#include "headkit/attention/reference.h"
#include "headkit/models/gated_model.h"
#include "optional_tensor.h"
#include "tensor_binding.h"

namespace py = pybind11;

namespace headkit::bindings {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

void bind_weight(py::class_<AttentionWeights>& owner, const char* name,
                 at::Tensor AttentionWeights::*member) {
  owner.def_property(
      name, [member](const AttentionWeights& self) { return or_none(self.*member); },
      [member](AttentionWeights& self, const OptionalTensor& value) {
        self.*member = or_undefined(value);
      });
}

// A Python function over `run(positional..., input)`: `names` are those of the positional arguments
// and end with py::kw_only() or keywords; those of an AttentionInput follow.
template <typename... Positional, typename Run, typename... Names>
void def_with_input(py::module_& m, const char* name, const char* doc, const Run& run,
                    const Names&... names) {
  m.def(
      name,
      [run](Positional... positional, OptionalTensor gate, bool skip,
            OptionalTensor key_padding_mask, bool is_causal, OptionalTensor attn_bias,
            OptionalTensor dropped_output, std::optional<double> scale, double dropout_p,
            int64_t dropout_seed, OptionalTensor kv, std::optional<int64_t> num_kv_heads,
            std::optional<std::vector<int64_t>> kv_head, OptionalTensor rotary_cos,
            OptionalTensor rotary_sin, OptionalTensor q_norm_weight, OptionalTensor k_norm_weight,
            double norm_eps, std::optional<int64_t> window, OptionalTensor k, OptionalTensor v,
            int64_t query_offset) {
        AttentionInput input;
        input.gate_ = std::move(gate);
        input.skip_ = skip;
        input.key_padding_mask_ = std::move(key_padding_mask);
        input.is_causal_ = is_causal;
        input.attn_bias_ = std::move(attn_bias);
        input.dropped_output_ = std::move(dropped_output);
        input.scale_ = scale;
        input.dropout(dropout_p, dropout_seed);
        input.kv_ = std::move(kv);
        input.num_kv_heads_ = num_kv_heads;
        input.kv_head_ = std::move(kv_head);
        input.rotary_cos_ = std::move(rotary_cos);
        input.rotary_sin_ = std::move(rotary_sin);
        input.q_norm_weight_ = std::move(q_norm_weight);
        input.k_norm_weight_ = std::move(k_norm_weight);
        input.norm_eps_ = norm_eps;
        input.window_ = window;
        input.keys_ = std::move(k);
        input.values_ = std::move(v);
        input.query_offset_ = query_offset;
        const py::gil_scoped_release release;
        return run(positional..., input);
      },
      names..., py::arg("gate") = py::none(), py::arg("skip") = true,
      py::arg("key_padding_mask") = py::none(), py::arg("is_causal") = false,
      py::arg("attn_bias") = py::none(), py::arg("dropped_output") = py::none(),
      py::arg("scale") = py::none(), py::arg("dropout_p") = 0.0, py::arg("dropout_seed") = 0,
      py::arg("kv") = py::none(), py::arg("num_kv_heads") = py::none(),
      py::arg("kv_head") = py::none(), py::arg("rotary_cos") = py::none(),
      py::arg("rotary_sin") = py::none(), py::arg("q_norm_weight") = py::none(),
      py::arg("k_norm_weight") = py::none(), py::arg("norm_eps") = 1e-6,
      py::arg("window") = py::none(), py::arg("k") = py::none(), py::arg("v") = py::none(),
      py::arg("query_offset") = 0, doc);
}

// (x, weights, num_heads, *, gate=None, ...)
template <typename Result>
void def_attention(py::module_& m, const char* name,
                   Result (*function)(const at::Tensor&, const AttentionWeights&, int64_t,
                                      const AttentionInput&),
                   const char* doc) {
  def_with_input<const at::Tensor&, const AttentionWeights&, int64_t>(
      m, name, doc, function, py::arg("x"), py::arg("weights"), py::arg("num_heads"),
      py::kw_only());
}

AttentionBlockCall call_of_tensors(const at::Tensor& x, const at::Tensor& q_weight,
                                   const OptionalTensor& k_weight, const OptionalTensor& v_weight,
                                   const at::Tensor& o_weight, int64_t num_heads,
                                   const OptionalTensor& q_bias, const OptionalTensor& k_bias,
                                   const OptionalTensor& v_bias, const OptionalTensor& o_bias,
                                   const AttentionInput& input) {
  const AttentionWeights weights{q_weight,
                                 or_undefined(k_weight),
                                 or_undefined(v_weight),
                                 o_weight,
                                 or_undefined(q_bias),
                                 or_undefined(k_bias),
                                 or_undefined(v_bias),
                                 or_undefined(o_bias)};
  return {x, weights, num_heads, input};
}

// The same arguments for each of these functions: the operator's own.
template <typename Run>
void def_of_tensors(py::module_& m, const char* name, const char* doc, const Run& run) {
  def_with_input<const at::Tensor&, const at::Tensor&, const OptionalTensor&, const OptionalTensor&,
                 const at::Tensor&, int64_t, const OptionalTensor&, const OptionalTensor&,
                 const OptionalTensor&, const OptionalTensor&>(
      m, name, doc, run, py::arg("x"), py::arg("q_weight"), py::arg("k_weight").none(true),
      py::arg("v_weight").none(true), py::arg("o_weight"), py::arg("num_heads"), py::kw_only(),
      py::arg("q_bias") = py::none(), py::arg("k_bias") = py::none(),
      py::arg("v_bias") = py::none(), py::arg("o_bias") = py::none());
}

}  // namespace

void register_attention(py::module_& m) {
  py::class_<AttentionWeights> weights(m, "AttentionWeights", R"pbdoc(
Weights of one attention layer, y = x W^T + b.

Head h owns rows h*dh .. (h+1)*dh-1 of q and its bias, and the same columns of o; KV head j the same
rows of k, v and their biases.

Args:
    q: shape [H*dh, D].
    k, v: shape [Hkv*dh, Dk]; Hkv = H and Dk = D unless the call says otherwise.
    o: shape [D, H*dh].
    q_bias: shape [H*dh], or None.
    k_bias, v_bias: shape [Hkv*dh], or None.
    o_bias: shape [D], or None.
Example:
    >>> headkit.AttentionWeights(*torch.randn(4, 6, 6)).q.shape
    torch.Size([6, 6])
)pbdoc");
  weights.def(
      py::init([](at::Tensor q, at::Tensor k, at::Tensor v, at::Tensor o, OptionalTensor q_bias,
                  OptionalTensor k_bias, OptionalTensor v_bias, OptionalTensor o_bias) {
        return AttentionWeights{q,
                                k,
                                v,
                                o,
                                or_undefined(q_bias),
                                or_undefined(k_bias),
                                or_undefined(v_bias),
                                or_undefined(o_bias)};
      }),
      py::arg("q"), py::arg("k"), py::arg("v"), py::arg("o"), py::kw_only(),
      py::arg("q_bias") = py::none(), py::arg("k_bias") = py::none(),
      py::arg("v_bias") = py::none(), py::arg("o_bias") = py::none());
  bind_weight(weights, "q", &AttentionWeights::q);
  bind_weight(weights, "k", &AttentionWeights::k);
  bind_weight(weights, "v", &AttentionWeights::v);
  bind_weight(weights, "o", &AttentionWeights::o);
  bind_weight(weights, "q_bias", &AttentionWeights::q_bias);
  bind_weight(weights, "k_bias", &AttentionWeights::k_bias);
  bind_weight(weights, "v_bias", &AttentionWeights::v_bias);
  bind_weight(weights, "o_bias", &AttentionWeights::o_bias);

  py::class_<BackendChoice>(m, "BackendChoice", "A backend's ``name``, and the ``reason`` for it.")
      .def_readonly("name", &BackendChoice::name)
      .def_readonly("reason", &BackendChoice::reason)
      .def("__repr__", [](const BackendChoice& self) {
        return "BackendChoice(name='" + self.name + "', reason='" + self.reason + "')";
      });

  def_attention(m, "gated_attention", &gated_attention, R"pbdoc(
Multi-head attention in which a closed gate is work not done.

No Q, K, V, core or output projection is computed for a skipped head of a sample, forward and
backward. The same as ``torch.ops.headkit.gated_attention``, with the weights in one value, or as
``torch.ops.headkit.attend`` where ``k`` and ``v`` are given.

Args:
    x: shape [B, T, D]; float32, float64, bfloat16 or float16.
    weights: AttentionWeights of the dtype and device of ``x``.
    num_heads: H.
    gate: [H], [B, H] or [B, T, H], float32 (float64 when ``x`` is float64). 0 = skipped, another
        value scales the head's output. A [B, T, H] gate skips a head of a sample only where all
        its tokens are closed.
    skip: False = closed heads are computed and multiplied by 0, so that their gates receive
        gradients; with True the gate of a skipped head gets exactly 0.
    key_padding_mask: bool [B, S]; True = attend (the opposite of torch.nn.MultiheadAttention).
    is_causal: query i sees keys j <= i + query_offset only.
    attn_bias: added to the scaled scores; broadcastable to [B, H, T, S], dtype of ``x``.
    dropped_output: [H, D]; a gate g gives ``g * output + (1 - g) * dropped_output``.
    scale: factor on the scores; default ``1 / sqrt(dh)``.
    dropout_p, dropout_seed: dropout on the attention probabilities; the seed alone decides.
    kv: [B, S, Dk], dtype of ``x``: where keys and values come from; default ``x``.
    num_kv_heads: Hkv; default H. Query head h reads KV head ``h // (H // Hkv)``, which runs for a
        sample when any of its query heads does.
    kv_head: the KV head of each query head instead, H entries in [0, Hkv).
    rotary_cos, rotary_sin: [B or 1, T, dr], dtype of ``x``, dr even and at most dh: rotary embedding
        of queries and keys (with ``k`` of queries only), dimension i together with i + dr / 2.
    q_norm_weight, k_norm_weight: [dh], dtype of ``x``: RMS norm over dh before the rotary embedding.
    norm_eps: what the norms add to the mean square.
    window: query i sees keys j with ``abs(i + query_offset - j) < window`` only.
    k, v: [B, Hkv, S, dh]: given keys and values, as ``torch.ops.headkit.project_kv`` makes them;
        those of ``weights`` are not read.
    query_offset: position of the first query among given keys.
Returns:
    torch.Tensor: [B, T, D], dtype of ``x``. A query without any admissible key gets 0 from each
    head.
Raises:
    ValueError: if shapes, dtypes or devices do not fit, or a CPU gate is not finite.
    RuntimeError: if HEADKIT_BACKEND names a backend that cannot run the call.
Source:
    Michel, Levy, Neubig 2019 (head gates); Vaswani et al. 2017.
Example:
    >>> weights = headkit.AttentionWeights(*torch.randn(4, 6, 6))
    >>> gate = torch.tensor([[1.0, 0.0, 0.5], [0.0, 0.0, 0.0]])
    >>> headkit.gated_attention(torch.randn(2, 4, 6), weights, 3, gate=gate)[1].abs().max()
    tensor(0.)
)pbdoc");
  def_attention(m, "reference_attention", &reference_attention, R"pbdoc(
The oracle of gated_attention: dense, differentiable, in plain PyTorch operators.

Computes every head and multiplies by the gates; ``skip`` changes nothing. Arguments and result as
gated_attention.

Example:
    >>> weights = headkit.AttentionWeights(*torch.randn(4, 6, 6))
    >>> headkit.reference_attention(torch.randn(2, 4, 6), weights, 3).shape
    torch.Size([2, 4, 6])
)pbdoc");
  def_attention(m, "head_contexts", &head_contexts, R"pbdoc(
Output of every head before the output projection; gates are not applied.

Arguments as gated_attention. Differentiable.

Returns:
    torch.Tensor: [B, T, H, dh], dtype of ``x``.
Example:
    >>> weights = headkit.AttentionWeights(*torch.randn(4, 6, 6))
    >>> headkit.head_contexts(torch.randn(2, 4, 6), weights, 3).shape
    torch.Size([2, 4, 3, 2])
)pbdoc");
  def_of_tensors(m, "head_contexts", R"pbdoc(
The same with the weights and biases as the operator takes them.

Where ``k`` and ``v`` are given, ``k_weight`` and ``v_weight`` may be None.
)pbdoc",
                 [](const auto&... arguments) {
                   const AttentionBlockCall call = call_of_tensors(arguments...);
                   return head_contexts(call.x, call.weights, call.num_heads, call.input);
                 });
  def_of_tensors(m, "attention_block_call",
                 "The arguments of a call as one value, for ``Taps.attention_call``.",
                 [](const auto&... arguments) { return call_of_tensors(arguments...); });
  py::class_<PairStatistics>(m, "PairStatistics", R"pbdoc(
What each query does with each head, as ``pair_statistics`` found it.

Every member is [B, H, T], float32 (float64 for float64). Closed heads, which are not computed, hold
NaN; a query that sees no key has log-sum-exp -infinity and zeros.
)pbdoc")
      .def_readonly("log_sum_exp", &PairStatistics::log_sum_exp, "Of the scaled scores.")
      .def_readonly("entropy", &PairStatistics::entropy,
                    "Of the attention probabilities, in nats: 0 .. log(S).")
      .def_readonly("largest_weight", &PairStatistics::largest_weight,
                    "Of the attention probabilities.")
      .def_readonly("contribution_norm", &PairStatistics::contribution_norm,
                    "Euclidean norm of what the head adds to the output.");
  def_attention(m, "pair_statistics", &pair_statistics, R"pbdoc(
Entropy, largest weight, log-sum-exp and norm of the contribution of every head at every query.

On backend "cpu" no attention probability lies in memory: the cost is that of a forward and one more
product of queries and keys. Elsewhere, and for given keys, plain operators compute [B, H, T, S].

Arguments as gated_attention, without dropout and gates [B, T, H]. No gradients.

Returns:
    PairStatistics: ``log_sum_exp``, ``entropy``, ``largest_weight`` and ``contribution_norm``.
Raises:
    ValueError: as gated_attention; on dropout and on a gate [B, T, H].
Example:
    >>> weights = headkit.AttentionWeights(*torch.randn(4, 6, 6))
    >>> statistics = headkit.pair_statistics(torch.randn(2, 4, 6), weights, 3)
    >>> statistics.entropy.shape
    torch.Size([2, 3, 4])
)pbdoc");
  def_attention(m, "attention_backend", &attention_backend, R"pbdoc(
The backend that gated_attention takes for such a call, and why.

Arguments as gated_attention.

Returns:
    BackendChoice: ``name`` ("cpu", "aten", "reference") and ``reason``.
Example:
    >>> weights = headkit.AttentionWeights(*torch.randn(4, 6, 6, dtype=torch.float64))
    >>> headkit.attention_backend(torch.randn(2, 4, 6, dtype=torch.float64), weights, 3).name
    'aten'
)pbdoc");
  m.def("refresh_packed_weights", &refresh_packed_weights, py::call_guard<py::gil_scoped_release>(),
        R"pbdoc(
Forget all packed weights.

Needed after an edit that torch does not count: ``.data``, numpy views, fused optimisers.
)pbdoc");
}

}  // namespace headkit::bindings
