#include <headkit/core/error.h>
#include <headkit/core/flops.h>
#include <headkit/core/gate_set.h>
#include <headkit/core/head_layout.h>
#include <headkit/core/head_mask.h>
#include <headkit/core/head_scores.h>
#include <headkit/core/system.h>
#include <headkit/core/version.h>
#include <headkit/plan/work_list.h>

#include "optional_tensor.h"
#include "tensor_binding.h"

namespace py = pybind11;

namespace headkit::bindings {
namespace {

void register_head_layout(py::module_& m) {
  py::class_<HeadId>(m, "HeadId", "A head, named by its place in the original model.")
      .def(py::init<int64_t, int64_t>(), py::arg("layer"), py::arg("head"))
      .def_readonly("layer", &HeadId::layer)
      .def_readonly("head", &HeadId::head)
      .def("__eq__", [](const HeadId& a, const HeadId& b) { return a == b; })
      .def("__hash__", [](const HeadId& id) { return py::hash(py::make_tuple(id.layer, id.head)); })
      .def("__iter__", [](const HeadId& id) { return py::iter(py::make_tuple(id.layer, id.head)); })
      .def("__repr__", [](const HeadId& id) {
        return "HeadId(layer=" + std::to_string(id.layer) + ", head=" + std::to_string(id.head) +
               ")";
      });

  py::class_<HeadLayout>(m, "HeadLayout", R"pbdoc(
The size of an original model, as far as heads and their cost are concerned.

Args:
    layers: attention layers.
    heads: heads per layer.
    head_dim: width of one head.
    model_dim: width of the residual stream.
    feed_forward: neurons of a layer's feed-forward block; 0 = none.
    kv_heads: heads of K and V per layer, a divisor of ``heads``; default ``heads``.
Example:
    >>> headkit.HeadLayout(6, 12, 32, 384, 1536).total_heads
    72
)pbdoc")
      .def(py::init([](int64_t layers, int64_t heads, int64_t head_dim, int64_t model_dim,
                       int64_t feed_forward, std::optional<int64_t> kv_heads) {
             HEADKIT_CHECK(kv_heads.value_or(1) > 0, "head_layout", "kv_heads of at least 1",
                           *kv_heads);
             HeadLayout layout{layers,    heads,        head_dim,
                               model_dim, feed_forward, kv_heads.value_or(0)};
             layout.check("head_layout");
             return layout;
           }),
           py::arg("layers"), py::arg("heads"), py::arg("head_dim"), py::arg("model_dim"),
           py::arg("feed_forward") = 0, py::arg("kv_heads") = py::none())
      .def_readonly("layers", &HeadLayout::layers)
      .def_readonly("heads", &HeadLayout::heads)
      .def_readonly("head_dim", &HeadLayout::head_dim)
      .def_readonly("model_dim", &HeadLayout::model_dim)
      .def_readonly("feed_forward", &HeadLayout::feed_forward)
      .def_property_readonly("kv_heads", &HeadLayout::key_value_heads)
      .def_property_readonly("total_heads", &HeadLayout::total_heads)
      .def("kv_heads_of", &HeadLayout::kv_heads_of, py::arg("kept"),
           "The KV heads that some heads read, ascending: those that stay when these heads stay.")
      .def("kv_places_of", &HeadLayout::kv_places_of, py::arg("kept"),
           "For each of some heads the place of its KV head in ``kv_heads_of(kept)``.")
      .def("to_json", &HeadLayout::to_json)
      .def_static("from_json", &HeadLayout::from_json, py::arg("text"))
      .def("__eq__", [](const HeadLayout& a, const HeadLayout& b) { return a == b; })
      .def("__repr__", [](const HeadLayout& l) { return "HeadLayout(" + l.to_json() + ")"; })
      .def(py::pickle([](const HeadLayout& l) { return l.to_json(); },
                      [](const std::string& text) { return HeadLayout::from_json(text); }));
}

void register_head_mask(py::module_& m) {
  py::class_<HeadMask>(m, "HeadMask", R"pbdoc(
Which heads are left after static pruning, in original indices. Immutable.

Args:
    keep: bool or 0/1, shape [layers, heads]; true = the head stays.
Raises:
    ValueError: for another shape or other values.
Example:
    >>> headkit.HeadMask(torch.tensor([[1, 0, 1], [0, 0, 1]])).layer_heads(0)
    [0, 2]
)pbdoc")
      .def(py::init<const at::Tensor&>(), py::arg("keep"))
      .def_static("all", &HeadMask::all, py::arg("layers"), py::arg("heads"))
      .def_property_readonly(
          "keep", [](const HeadMask& mask) { return mask.keep().clone(); },
          "Bool [layers, heads], a copy.")
      .def_property_readonly("layers", &HeadMask::layers)
      .def_property_readonly("heads", &HeadMask::heads)
      .def_property_readonly("count", &HeadMask::count, "Heads that stay.")
      .def("contains", &HeadMask::contains, py::arg("id"))
      .def("layer_heads", &HeadMask::layer_heads, py::arg("layer"))
      .def("removed", &HeadMask::removed)
      .def("is_subset_of", &HeadMask::is_subset_of, py::arg("other"))
      .def("intersect", &HeadMask::intersect, py::arg("other"))
      .def("to_json", &HeadMask::to_json)
      .def_static("from_json", &HeadMask::from_json, py::arg("text"))
      .def("__eq__", [](const HeadMask& a, const HeadMask& b) { return a == b; })
      .def("__repr__", [](const HeadMask& mask) {
        return "HeadMask(" + std::to_string(mask.count()) + " of " +
               std::to_string(mask.layers() * mask.heads()) + " heads)";
      });
}

std::string data_hash_of(const HeadScores& scores) {
  if (scores.settings.empty()) return "";
  const py::object settings = py::module_::import("json").attr("loads")(scores.settings);
  return settings.attr("get")("data_hash", "").cast<std::string>();
}

void register_head_scores(py::module_& m) {
  py::class_<HeadScores>(m, "HeadScores", R"pbdoc(
Importance of every head; larger = more important.

What was computed elsewhere takes part as well: ``HeadScores(values, metric="mine")``.

Attributes:
    values: float64, shape [layers, heads].
    lower, upper: ends of the interval at level ``confidence``, or None.
    metric, objective, settings, samples, seed: what produced the values.
    data_hash: ``headkit.data_hash`` of the examples behind them, part of the settings; "" = none,
        or not known.
)pbdoc")
      .def(py::init([](const at::Tensor& values, std::string metric, std::string objective,
                       int64_t samples, uint64_t seed, std::optional<at::Tensor> lower,
                       std::optional<at::Tensor> upper, double confidence, std::string settings) {
             HeadScores scores;
             scores.values = values.detach().to(at::kCPU, at::kDouble);
             scores.metric = std::move(metric);
             scores.objective = std::move(objective);
             scores.samples = samples;
             scores.seed = seed;
             scores.lower = or_undefined(lower);
             scores.upper = or_undefined(upper);
             scores.confidence = confidence;
             scores.settings = std::move(settings);
             scores.check("head_scores");
             return scores;
           }),
           py::arg("values"), py::kw_only(), py::arg("metric") = "imported",
           py::arg("objective") = "", py::arg("samples") = 0, py::arg("seed") = 0,
           py::arg("lower") = py::none(), py::arg("upper") = py::none(),
           py::arg("confidence") = 0.95, py::arg("settings") = "{}")
      .def_readonly("values", &HeadScores::values)
      .def_property_readonly("lower", [](const HeadScores& s) { return or_none(s.lower); })
      .def_property_readonly("upper", [](const HeadScores& s) { return or_none(s.upper); })
      .def_readonly("confidence", &HeadScores::confidence)
      .def_readonly("metric", &HeadScores::metric)
      .def_readonly("objective", &HeadScores::objective)
      .def_readonly("settings", &HeadScores::settings)
      .def_readonly("samples", &HeadScores::samples)
      .def_readonly("seed", &HeadScores::seed)
      .def_property_readonly("data_hash", &data_hash_of)
      .def("to_json", &HeadScores::to_json)
      .def_static("from_json", &HeadScores::from_json, py::arg("text"))
      .def(
          "plot",
          [](const py::object& self, const py::object& path) {
            py::module_::import("headkit.scoring").attr("plot_scores")(self, path);
          },
          py::arg("path"), "Draw a heat map into a file; see headkit.plot_scores.")
      .def("__repr__", [](const HeadScores& s) {
        const std::string hash = data_hash_of(s);
        return "HeadScores(" + s.metric + " of " + s.objective + ", [" +
               std::to_string(s.values.size(0)) + ", " + std::to_string(s.values.size(1)) +
               "], samples=" + std::to_string(s.samples) +
               (hash.empty() ? "" : ", data=" + hash.substr(0, 8)) + ")";
      });
}

// Gates beyond heads and blocks must fit each other, whatever the model.
void check_units(const GateSet& gates) {
  const auto size = [](const at::Tensor& tensor, int64_t axis) {
    return tensor.defined() && tensor.dim() >= -axis ? tensor.size(axis) : 0;
  };
  const at::Tensor &neurons = gates.neurons, &blocks = gates.feed_forward_sublayers;
  gates.check_feed_forward("gate_set", -1, neurons.defined() ? size(neurons, -2) : size(blocks, -1),
                           size(neurons, -1));
  gates.check_hidden("gate_set", size(gates.hidden, -1));
  const at::Tensor &heads = gates.heads, &attention = gates.attention_sublayers;
  if (!heads.defined() && attention.defined()) {
    gates.check("gate_set", -1, size(attention, -1), 0);
  }
}

void register_gate_set(py::module_& m) {
  py::class_<GateSet>(m, "GateSet", R"pbdoc(
Gates of a whole model for one batch, in original head indices.

Args:
    heads: float32 (float64 for a float64 model), shape [layers, heads], [batch, layers, heads] or
        [batch, layers, tokens, heads]; 1 = the head as it is, 0 = it does not run; None = all run.
    dropped_output: what a closed head adds instead of nothing, shape [layers, heads, model_dim].
    blocks: gates of blocks of 32 neurons, float32 or float64, shape [layers, blocks] or [batch,
        layers, blocks]; None = all run.
    dropped_blocks: what a closed block adds instead of nothing, shape [layers, blocks, model_dim].
    skip: False computes closed heads and blocks and multiplies by 0, so that their gates get
        gradients.
    neurons: gates of neurons, factors of what the activation gives, shape [layers, neurons] or
        [batch, layers, neurons].
    attention_sublayers, feed_forward_sublayers: gates of whole blocks, factors of what they add,
        output bias included (all heads at 0 leave it), shape [layers] or [batch, layers].
    hidden: gates of the dimensions of the residual stream, shape [model_dim].
Raises:
    ValueError: if the shapes do not fit each other or a gate is not finite.
Example:
    >>> headkit.GateSet(attention_sublayers=torch.tensor([1.0, 0.0])).heads is None
    True
)pbdoc")
      .def(py::init([](std::optional<at::Tensor> heads, std::optional<at::Tensor> dropped_output,
                       std::optional<at::Tensor> blocks, std::optional<at::Tensor> dropped_blocks,
                       bool skip, std::optional<at::Tensor> neurons,
                       std::optional<at::Tensor> attention_sublayers,
                       std::optional<at::Tensor> feed_forward_sublayers,
                       std::optional<at::Tensor> hidden) {
             GateSet gates;
             gates.heads = or_undefined(heads);
             gates.dropped_output = or_undefined(dropped_output);
             gates.blocks = or_undefined(blocks);
             gates.dropped_blocks = or_undefined(dropped_blocks);
             gates.skip = skip;
             gates.neurons = or_undefined(neurons);
             gates.attention_sublayers = or_undefined(attention_sublayers);
             gates.feed_forward_sublayers = or_undefined(feed_forward_sublayers);
             gates.hidden = or_undefined(hidden);
             check_units(gates);
             if (const at::Tensor& b = gates.blocks; b.defined()) {
               const bool fits = b.dim() >= 2;
               gates.check_blocks("gate_set", -1, fits ? b.size(-2) : 0, fits ? b.size(-1) : 0);
             }
             if (gates.heads.defined() && gates.heads.dim() >= 2) {
               const at::Tensor& h = gates.heads;
               gates.check("gate_set", -1, h.size(h.dim() == 2 ? 0 : 1), h.size(-1));
             } else if (gates.heads.defined()) {
               gates.check("gate_set", -1, 0, 0);
             }
             return gates;
           }),
           py::arg("heads") = py::none(), py::kw_only(), py::arg("dropped_output") = py::none(),
           py::arg("blocks") = py::none(), py::arg("dropped_blocks") = py::none(),
           py::arg("skip") = true, py::arg("neurons") = py::none(),
           py::arg("attention_sublayers") = py::none(),
           py::arg("feed_forward_sublayers") = py::none(), py::arg("hidden") = py::none())
      .def_static("from_mask", &GateSet::from_mask, py::arg("mask"))
      .def_property_readonly("heads", [](const GateSet& g) { return or_none(g.heads); })
      .def_property_readonly("dropped_output",
                             [](const GateSet& g) { return or_none(g.dropped_output); })
      .def_property_readonly("blocks", [](const GateSet& g) { return or_none(g.blocks); })
      .def_property_readonly("dropped_blocks",
                             [](const GateSet& g) { return or_none(g.dropped_blocks); })
      .def_property_readonly("neurons", [](const GateSet& g) { return or_none(g.neurons); })
      .def_property_readonly("attention_sublayers",
                             [](const GateSet& g) { return or_none(g.attention_sublayers); })
      .def_property_readonly("feed_forward_sublayers",
                             [](const GateSet& g) { return or_none(g.feed_forward_sublayers); })
      .def_property_readonly("hidden", [](const GateSet& g) { return or_none(g.hidden); })
      .def_readonly("skip", &GateSet::skip)
      .def_property_readonly("empty", &GateSet::empty, "Whether nothing is gated.")
      .def(
          "layer_gate", [](const GateSet& g, int64_t l) { return or_none(g.layer_gate(l)); },
          py::arg("layer"))
      .def(
          "layer_dropped_output",
          [](const GateSet& g, int64_t l) { return or_none(g.layer_dropped_output(l)); },
          py::arg("layer"))
      .def("select_samples", &GateSet::select_samples, py::arg("index"))
      .def(
          "check",
          [](const GateSet& g, int64_t batch, int64_t layers, int64_t heads) {
            g.check("gates", batch, layers, heads);
          },
          py::arg("batch"), py::arg("layers"), py::arg("heads"))
      .def("to_json", &GateSet::to_json)
      .def_static("from_json", &GateSet::from_json, py::arg("text"));
}

void register_work_list(py::module_& m) {
  py::class_<WorkList>(m, "WorkList", R"pbdoc(
The heads that run in one batch: a sparse [batch, heads] matrix by sample and by head.

Example:
    >>> plan = headkit.make_work_list(torch.tensor([[1.0, 0.0, 0.5], [0.0, 0.0, 0.0]]))
    >>> plan.row_offset, plan.head_index, plan.scale
    ([0, 2, 2], [0, 2], [1.0, 0.5])
)pbdoc")
      .def_readonly("batch", &WorkList::batch)
      .def_readonly("heads", &WorkList::heads)
      .def_readonly("row_offset", &WorkList::row_offset)
      .def_readonly("head_index", &WorkList::head_index)
      .def_readonly("scale", &WorkList::scale)
      .def_readonly("col_offset", &WorkList::col_offset)
      .def_readonly("sample_index", &WorkList::sample_index)
      .def_readonly("pair_of", &WorkList::pair_of)
      .def_property_readonly("pairs", &WorkList::pairs)
      .def("to_keep", &WorkList::to_keep)
      .def("to_json", &WorkList::to_json)
      .def_static("from_json", &WorkList::from_json, py::arg("text"))
      .def("__repr__", [](const WorkList& list) { return "WorkList(" + list.to_json() + ")"; });
  m.def("make_work_list", &make_work_list, py::arg("gate"), R"pbdoc(
List the open heads of gates [batch, heads] (float32 or float64, CPU).

Raises:
    ValueError: for another rank, dtype or device, and for a NaN or infinite gate.
)pbdoc");
}

}  // namespace

void register_core(py::module_& m) {
  m.attr("__version__") = HEADKIT_VERSION;
  m.attr("torch_version") = HEADKIT_TORCH_VERSION;
  register_head_layout(m);
  register_head_mask(m);
  register_head_scores(m);
  register_gate_set(m);
  register_work_list(m);
  m.def("attention_flops", &attention_flops, py::arg("layout"), py::arg("active_heads"),
        py::arg("tokens"), py::arg("active_kv_heads") = py::none(), R"pbdoc(
FLOPs of ``active_heads`` heads of one sample.

4*T*dh*(D+T) a head and 4*T*dh*D a KV head that runs: 4*T*dh*(2*D+T) a head where each has its own.
Without ``active_kv_heads`` the most that there can be.
)pbdoc");
  m.def("feed_forward_flops", &feed_forward_flops, py::arg("layout"), py::arg("tokens"),
        "FLOPs of one feed-forward block for one sample: 4*T*D*F.");
  py::class_<UnitCosts>(m, "UnitCosts", R"pbdoc(
What one unit costs, where units of a kind cost the same.

Attributes:
    head: of a head.
    neuron: of a neuron of a feed-forward block.
    fixed: of what goes with no single unit (shared KV heads).
)pbdoc")
      .def_readonly("head", &UnitCosts::head)
      .def_readonly("neuron", &UnitCosts::neuron)
      .def_readonly("fixed", &UnitCosts::fixed)
      .def("total", &UnitCosts::total, py::arg("heads"), py::arg("neurons"),
           "Of so many heads and neurons.");
  m.def("unit_macs", &unit_macs, py::arg("layout"), py::arg("tokens"), py::arg("matrices") = 2,
        R"pbdoc(
Multiply-accumulates of a head and of a neuron, for one sample (FLOPs = 2 MACs).

Args:
    layout: HeadLayout.
    tokens: length of the sample, a mean where lengths differ.
    matrices: linear maps of a feed-forward block: 2, or 3 in a gated one.
Raises:
    ValueError: unless ``tokens`` is positive and ``matrices`` 2 or 3.
Example:
    >>> bert = headkit.HeadLayout(12, 12, 64, 768, 3072)
    >>> costs = headkit.unit_macs(bert, 128)
    >>> round(costs.total(144, 12 * 3072) / costs.total(0, 12 * 3072), 2)  # all heads gone
    1.54
)pbdoc");
  m.def("unit_parameters", &unit_parameters, py::arg("layout"), py::arg("matrices") = 2,
        "Weights of a head and of a neuron, biases left out; see ``unit_macs``.");
  m.def("encoder_flops", &encoder_flops, py::arg("layout"), py::arg("active_heads"),
        py::arg("tokens"), py::arg("active_kv_heads") = py::none(), R"pbdoc(
FLOPs of a whole encoder for one sample: its open heads and every feed-forward block.

Example:
    >>> layout = headkit.HeadLayout(6, 12, 32, 384, 1536)
    >>> round(headkit.encoder_flops(layout, 36, 128) / headkit.encoder_flops(layout, 72, 128), 3)
    0.816
)pbdoc");
  m.def("available_isas", &available_isas, "Instruction-set levels, slowest first.");
  m.def("active_isa", &active_isa, "The level in use (HEADKIT_ISA forces one).");
  m.def("available_backends", &available_backends, "Backends of the attention operator here.");
  m.def("show_config", &show_config, "Versions, instruction set, threads, backends.");
}

}  // namespace headkit::bindings
