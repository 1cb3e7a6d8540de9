#include <headkit/feed_forward/gated_feed_forward.h>
#include <headkit/feed_forward/reference.h>

#include <optional>
#include <string>
#include <utility>

#include "optional_tensor.h"
#include "tensor_binding.h"

namespace py = pybind11;

namespace headkit::bindings {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

void bind_weight(py::class_<FeedForwardWeights>& owner, const char* name,
                 at::Tensor FeedForwardWeights::*member) {
  owner.def_property(
      name, [member](const FeedForwardWeights& self) { return or_none(self.*member); },
      [member](FeedForwardWeights& self, const OptionalTensor& value) {
        self.*member = or_undefined(value);
      });
}

template <typename Result>
void def_feed_forward(py::module_& m, const char* name,
                      Result (*function)(const at::Tensor&, const FeedForwardWeights&,
                                         const FeedForwardInput&),
                      const char* doc) {
  m.def(
      name,
      [function](const at::Tensor& x, const FeedForwardWeights& weights, std::string activation,
                 int64_t block_size, OptionalTensor gate, OptionalTensor prefix, bool skip,
                 OptionalTensor dropped_output) {
        FeedForwardInput input;
        input.activation_ = std::move(activation);
        input.block_size_ = block_size;
        input.gate_ = std::move(gate);
        input.prefix_ = std::move(prefix);
        input.skip_ = skip;
        input.dropped_output_ = std::move(dropped_output);
        const py::gil_scoped_release release;
        return function(x, weights, input);
      },
      py::arg("x"), py::arg("weights"), py::kw_only(), py::arg("activation") = "gelu",
      py::arg("block_size") = 32, py::arg("gate") = py::none(), py::arg("prefix") = py::none(),
      py::arg("skip") = true, py::arg("dropped_output") = py::none(), doc);
}

}  // namespace

void register_feed_forward(py::module_& m) {
  py::class_<FeedForwardWeights> weights(m, "FeedForwardWeights", R"pbdoc(
Weights of one feed-forward layer with F neurons, y = x W^T + b.

Block j of neurons owns rows ``j * block_size`` and on of ``inner``, ``up`` and their biases, and the
same columns of ``out``.

Args:
    inner: shape [F, D].
    out: shape [D, F].
    up: shape [F, D], or None: multiplies what the activation gives (GEGLU, SwiGLU ...).
    inner_bias, up_bias: shape [F], or None.
    out_bias: shape [D], or None.
Example:
    >>> headkit.FeedForwardWeights(torch.randn(24, 6), torch.randn(6, 24)).out.shape
    torch.Size([6, 24])
)pbdoc");
  weights.def(
      py::init([](at::Tensor inner, at::Tensor out, OptionalTensor up, OptionalTensor inner_bias,
                  OptionalTensor out_bias, OptionalTensor up_bias) {
        return FeedForwardWeights{inner,
                                  out,
                                  or_undefined(up),
                                  or_undefined(inner_bias),
                                  or_undefined(up_bias),
                                  or_undefined(out_bias)};
      }),
      py::arg("inner"), py::arg("out"), py::kw_only(), py::arg("up") = py::none(),
      py::arg("inner_bias") = py::none(), py::arg("out_bias") = py::none(),
      py::arg("up_bias") = py::none());
  bind_weight(weights, "inner", &FeedForwardWeights::in);
  bind_weight(weights, "out", &FeedForwardWeights::out);
  bind_weight(weights, "up", &FeedForwardWeights::up);
  bind_weight(weights, "inner_bias", &FeedForwardWeights::in_bias);
  bind_weight(weights, "out_bias", &FeedForwardWeights::out_bias);
  bind_weight(weights, "up_bias", &FeedForwardWeights::up_bias);

  def_feed_forward(m, "gated_feed_forward", &gated_feed_forward, R"pbdoc(
A feed-forward layer in which a closed gate is work not done.

A block of neurons that is skipped for a sample costs nothing, forward and backward. The same as
``torch.ops.headkit.gated_feed_forward``, with the weights in one value.

Args:
    x: shape [B, T, D]; float32, float64, bfloat16 or float16.
    weights: FeedForwardWeights of the dtype and device of ``x``.
    activation: "gelu" (by the error function), "gelu_tanh", "relu" or "silu".
    block_size: neurons of a block; the last one may have fewer. N = ceil(F / block_size).
    gate: [N] or [B, N], float32 (float64 when ``x`` is float64). 0 = skipped, another value scales
        what the block adds.
    prefix: instead of a gate int64 [B], the number of leading blocks that run for each sample.
    skip: False = closed blocks are computed and multiplied by 0, so that their gates receive
        gradients; with True the gate of a skipped block gets exactly 0.
    dropped_output: [N, D]; a gate g gives ``g * output + (1 - g) * dropped_output``.
Returns:
    torch.Tensor: [B, T, D], dtype of ``x``.
Raises:
    ValueError: if shapes, dtypes or devices do not fit, the activation is not known, a CPU gate is
        not finite or a prefix lies beyond [0, N].
    RuntimeError: if HEADKIT_BACKEND names a backend that cannot run the call.
Source:
    Hendrycks, Gimpel 2016 (GELU); Shazeer 2020 (gated variants).
Example:
    >>> weights = headkit.FeedForwardWeights(torch.randn(96, 6), torch.randn(6, 96))
    >>> y = headkit.gated_feed_forward(torch.randn(2, 4, 6), weights, prefix=torch.tensor([3, 0]))
    >>> y[1].abs().max()
    tensor(0.)
)pbdoc");
  def_feed_forward(m, "reference_feed_forward", &reference_feed_forward, R"pbdoc(
The oracle of gated_feed_forward: dense, differentiable, in plain PyTorch operators.

Computes every block and multiplies by the gates; ``skip`` changes nothing. Arguments and result as
gated_feed_forward.

Example:
    >>> weights = headkit.FeedForwardWeights(torch.randn(96, 6), torch.randn(6, 96))
    >>> headkit.reference_feed_forward(torch.randn(2, 4, 6), weights).shape
    torch.Size([2, 4, 6])
)pbdoc");
  def_feed_forward(m, "feed_forward_backend", &feed_forward_backend, R"pbdoc(
The backend that gated_feed_forward takes for such a call, and why.

Arguments as gated_feed_forward.

Returns:
    BackendChoice: ``name`` ("cpu", "aten", "reference") and ``reason``.
Example:
    >>> weights = headkit.FeedForwardWeights(torch.randn(96, 6), torch.randn(6, 96))
    >>> headkit.feed_forward_backend(torch.randn(2, 4, 6), weights).name
    'cpu'
)pbdoc");
}

}  // namespace headkit::bindings
