#include <headkit/core/error.h>
#include <headkit/models/data_hash.h>
#include <headkit/models/direct_paths.h>
#include <headkit/models/gated_model.h>
#include <headkit/models/objective.h>
#include <headkit/models/sentence_probe.h>
#include <pybind11/functional.h>
#include <pybind11/trampoline_self_life_support.h>

#include <variant>

#include "any_gates.h"
#include "optional_tensor.h"
#include "python_data.h"
#include "tensor_binding.h"

namespace py = pybind11;

namespace headkit::bindings {
namespace {

// The Python object that a Python model keeps with a state.
struct PythonExtra final : ModelState::Extra {
  explicit PythonExtra(py::object value) : object(std::move(value)) {}
  ~PythonExtra() override {
    py::gil_scoped_acquire gil;
    object = py::object();
  }
  py::object object;
};

// A Python context manager that is open until the last copy of the pointer goes.
std::shared_ptr<void> entered(py::object manager) {
  manager.attr("__enter__")();
  return std::shared_ptr<void>(manager.release().ptr(), [](void* pointer) {
    py::gil_scoped_acquire gil;
    const auto manager = py::reinterpret_steal<py::object>(static_cast<PyObject*>(pointer));
    py::error_scope pending;  // an exception may be on its way
    try {
      manager.attr("__exit__")(py::none(), py::none(), py::none());
    } catch (py::error_already_set& error) {
      error.discard_as_unraisable("headkit: leaving evaluation mode");
    }
  });
}

// Sends the calls of C++ to a Python subclass. Overrides take the GIL; callers have let go of it.
class PythonGatedModel final : public GatedModel,
                               public DirectPaths,
                               public py::trampoline_self_life_support {
 public:
  using GatedModel::GatedModel;
  HeadLayout layout() const override { PYBIND11_OVERRIDE_PURE(HeadLayout, GatedModel, layout); }
  HeadMask heads() const override { PYBIND11_OVERRIDE_PURE(HeadMask, GatedModel, heads); }
  ModelState embed(const Batch& batch) override {
    PYBIND11_OVERRIDE_PURE(ModelState, GatedModel, embed, batch);
  }
  ModelState run(const ModelState& state, int64_t first, int64_t last, const GateSet& gates,
                 Taps* taps) override {
    PYBIND11_OVERRIDE_PURE(ModelState, GatedModel, run, state, first, last, gates, taps);
  }
  at::Tensor head(const ModelState& state) override {
    PYBIND11_OVERRIDE_PURE(at::Tensor, GatedModel, head, state);
  }
  ModelState select(const ModelState& state, const at::Tensor& index) override {
    PYBIND11_OVERRIDE(ModelState, GatedModel, select, state, index);
  }
  AttentionWeights attention(int64_t layer) override {
    PYBIND11_OVERRIDE_PURE(AttentionWeights, GatedModel, attention, layer);
  }
  void replace_attention(int64_t layer, const AttentionWeights& weights,
                         const std::vector<int64_t>& kept) override {
    PYBIND11_OVERRIDE_PURE(void, GatedModel, replace_attention, layer, weights, kept);
  }
  GatedUnits gated_units() const override {
    PYBIND11_OVERRIDE(GatedUnits, GatedModel, gated_units, );
  }
  at::Tensor neurons() override { PYBIND11_OVERRIDE(at::Tensor, GatedModel, neurons, ); }
  FeedForwardWeights feed_forward(int64_t layer) override {
    PYBIND11_OVERRIDE(FeedForwardWeights, GatedModel, feed_forward, layer);
  }
  void replace_feed_forward(int64_t layer, const FeedForwardWeights& weights,
                            const std::vector<int64_t>& kept) override {
    PYBIND11_OVERRIDE(void, GatedModel, replace_feed_forward, layer, weights, kept);
  }
  Sublayers sublayers() override { PYBIND11_OVERRIDE(Sublayers, GatedModel, sublayers, ); }
  void set_sublayers(const Sublayers& open) override {
    PYBIND11_OVERRIDE(void, GatedModel, set_sublayers, open);
  }
  std::shared_ptr<void> evaluating() override {
    py::gil_scoped_acquire gil;
    const py::function override =
        py::get_override(static_cast<const GatedModel*>(this), "evaluating");
    return override ? entered(override()) : nullptr;
  }
  std::shared_ptr<void> direct_paths() override {
    py::gil_scoped_acquire gil;
    const py::function override =
        py::get_override(static_cast<const GatedModel*>(this), "direct_paths");
    if (!override) return nullptr;
    py::object context = override();
    return context.is_none() ? nullptr : entered(std::move(context));
  }
  std::vector<std::pair<std::string, at::Tensor>> parameters() override {
    using Named = std::vector<std::pair<std::string, at::Tensor>>;
    PYBIND11_OVERRIDE_PURE(Named, GatedModel, parameters, );
  }
};

void register_data(py::module_& m) {
  py::class_<DataSource, std::shared_ptr<DataSource>>(m, "DataSource", R"pbdoc(
Batches that can be walked any number of times.

Args:
    batches: a list of dictionaries from names to tensors, a torch ``DataLoader``, or anything else
        that yields such batches each time it is iterated. The first axis of every tensor is the
        example. None entries are left out.
Raises:
    ValueError: for an iterator or generator (it would be empty the second time), for one batch
        instead of a list, and, when walked, for entries that are no tensors.
Example:
    >>> data = headkit.DataSource([{"x": torch.zeros(2, 3)}, {"x": torch.ones(1, 3)}])
    >>> data.size
    2
)pbdoc")
      .def(py::init(&data_from_python), py::arg("batches"))
      .def_property_readonly("size", &DataSource::size, "Number of batches, or None.")
      .def("for_each", &DataSource::for_each, py::arg("visit"),
           py::call_guard<py::gil_scoped_release>(),
           "Calls ``visit`` with every batch, a dictionary, in order.");
  accept_as_data(m);
}

void register_state(py::module_& m) {
  py::class_<ModelState>(m, "ModelState", R"pbdoc(
What flows between the stages of a model: the residual stream before a layer.

Args:
    hidden: shape [batch, tokens, model_dim].
    attention_mask: bool, shape [batch, tokens], true = token; None = no padding.
    batch: the inputs it came from, name -> tensor.
    layer: the next layer to run.
    extra: the implementation's own, any object.
)pbdoc")
      .def(py::init([](at::Tensor hidden, std::optional<at::Tensor> attention_mask, Batch batch,
                       int64_t layer, py::object extra) {
             ModelState state;
             state.hidden = std::move(hidden);
             state.attention_mask = or_undefined(attention_mask);
             state.batch = std::move(batch);
             state.layer = layer;
             if (!extra.is_none()) state.extra = std::make_shared<PythonExtra>(std::move(extra));
             return state;
           }),
           py::arg("hidden"), py::kw_only(), py::arg("attention_mask") = py::none(),
           py::arg("batch") = Batch(), py::arg("layer") = 0, py::arg("extra") = py::none())
      .def_readonly("hidden", &ModelState::hidden)
      .def_property_readonly("attention_mask",
                             [](const ModelState& s) { return or_none(s.attention_mask); })
      .def_readonly("batch", &ModelState::batch)
      .def_readonly("layer", &ModelState::layer)
      .def_property_readonly("extra", [](const ModelState& s) -> py::object {
        const auto* extra = dynamic_cast<const PythonExtra*>(s.extra.get());
        return extra == nullptr ? py::none() : extra->object;
      });

  py::class_<AttentionBlockCall>(m, "AttentionBlockCall",
                                 "One call of an attention block, with its arguments.");

  py::class_<Taps>(m, "Taps", R"pbdoc(
What a caller wants to see of a run.

Attributes:
    attention_inputs: ask for the input of each attention block.
    head_contexts: ask for what the heads of each block make of it.
    attention_calls: ask for the calls of attention blocks, as ``attention_block_call`` makes them.
    attention_input: by block run, shape [batch, tokens, model_dim] each; filled by the run.
    head_context: by block run, shape [batch, tokens, heads present, head_dim] each: output of each
        head before gate and output projection. Tokens may differ between blocks.
    attention_call: by block run, AttentionBlockCall.
    valid: by block run, with either of them: bool, shape [batch, tokens], true = token; None = all
        are tokens.
    attention_outputs, feed_forward_outputs: ask for what each block adds to the residual stream.
    feed_forward_inputs, neuron_activations: ask for the input of each feed-forward block, and for
        what its neurons make of it.
    attention_output, feed_forward_output: by block run, shape [batch, tokens, model_dim] each:
        before dropout, under the gates of the run.
    feed_forward_input: by feed-forward block run, shape [batch, tokens, model_dim] each.
    neurons: by feed-forward block run, shape [batch, tokens, neurons present] each: what goes into
        the second linear map, before the gates.
)pbdoc")
      .def(py::init([](bool attention_inputs, bool head_contexts, bool attention_outputs,
                       bool feed_forward_inputs, bool neuron_activations, bool feed_forward_outputs,
                       bool attention_calls) {
             Taps taps;
             taps.attention_inputs = attention_inputs;
             taps.head_contexts = head_contexts;
             taps.attention_outputs = attention_outputs;
             taps.feed_forward_inputs = feed_forward_inputs;
             taps.neuron_activations = neuron_activations;
             taps.feed_forward_outputs = feed_forward_outputs;
             taps.attention_calls = attention_calls;
             return taps;
           }),
           py::kw_only(), py::arg("attention_inputs") = false, py::arg("head_contexts") = false,
           py::arg("attention_outputs") = false, py::arg("feed_forward_inputs") = false,
           py::arg("neuron_activations") = false, py::arg("feed_forward_outputs") = false,
           py::arg("attention_calls") = false)
      .def_readonly("attention_calls", &Taps::attention_calls)
      .def_readwrite("attention_call", &Taps::attention_call)
      .def_readonly("attention_inputs", &Taps::attention_inputs)
      .def_readonly("head_contexts", &Taps::head_contexts)
      .def_readonly("attention_outputs", &Taps::attention_outputs)
      .def_readonly("feed_forward_inputs", &Taps::feed_forward_inputs)
      .def_readonly("neuron_activations", &Taps::neuron_activations)
      .def_readonly("feed_forward_outputs", &Taps::feed_forward_outputs)
      .def_readwrite("attention_output", &Taps::attention_output)
      .def_readwrite("feed_forward_input", &Taps::feed_forward_input)
      .def_readwrite("neurons", &Taps::neurons)
      .def_readwrite("feed_forward_output", &Taps::feed_forward_output)
      .def_readwrite("attention_input", &Taps::attention_input)
      .def_readwrite("head_context", &Taps::head_context)
      .def_property(
          "valid",
          [](const Taps& taps) {
            std::vector<std::optional<at::Tensor>> valid;
            for (const at::Tensor& each : taps.valid) valid.push_back(or_none(each));
            return valid;
          },
          [](Taps& taps, const std::vector<std::optional<at::Tensor>>& valid) {
            taps.valid.clear();
            for (const auto& each : valid) taps.valid.push_back(or_undefined(each));
          });
}

void register_gated_model(py::module_& m) {
  using Unlocked = py::call_guard<py::gil_scoped_release>;
  py::class_<GatedUnits>(m, "GatedUnits", R"pbdoc(
Which units beside heads a model has gates of.

Args:
    neurons, attention_sublayers, feed_forward_sublayers, hidden: bool each, default False.
)pbdoc")
      .def(py::init([](bool neurons, bool attention, bool feed_forward, bool hidden) {
             return GatedUnits{neurons, attention, feed_forward, hidden};
           }),
           py::kw_only(), py::arg("neurons") = false, py::arg("attention_sublayers") = false,
           py::arg("feed_forward_sublayers") = false, py::arg("hidden") = false)
      .def_readonly("neurons", &GatedUnits::neurons)
      .def_readonly("attention_sublayers", &GatedUnits::attention_sublayers)
      .def_readonly("feed_forward_sublayers", &GatedUnits::feed_forward_sublayers)
      .def_readonly("hidden", &GatedUnits::hidden);
  py::class_<Sublayers>(m, "Sublayers", R"pbdoc(
Which blocks of a model are open.

Args:
    attention: bool for each attention block.
    feed_forward: bool for each feed-forward block; empty if the model does not show them.
)pbdoc")
      .def(py::init([](std::vector<bool> attention, std::vector<bool> feed_forward) {
             return Sublayers{std::move(attention), std::move(feed_forward)};
           }),
           py::arg("attention"), py::arg("feed_forward") = std::vector<bool>())
      .def_readonly("attention", &Sublayers::attention)
      .def_readonly("feed_forward", &Sublayers::feed_forward)
      .def("__eq__", [](const Sublayers& a, const Sublayers& b) {
        return a.attention == b.attention && a.feed_forward == b.feed_forward;
      });
  py::classh<GatedModel, PythonGatedModel>(m, "GatedModel", R"pbdoc(
A transformer whose heads have gates: what scorers, pruners, policies and explanations use.

``model(batch, gates)`` is ``head(run(embed(batch), 0, layers, gates))``. All gates 1 gives the
outputs of the original model. A Python class may derive from it and implement every method.
)pbdoc")
      .def(py::init<>())
      .def("layout", &GatedModel::layout, Unlocked(), "HeadLayout of the original model.")
      .def("heads", &GatedModel::heads, Unlocked(), "HeadMask of the heads physically there.")
      .def("embed", &GatedModel::embed, py::arg("batch"), Unlocked(), "ModelState before layer 0.")
      .def(
          "run",
          [](GatedModel& model, const ModelState& state, int64_t first, int64_t last,
             const AnyGates& gates,
             Taps* taps) { return model.run(state, first, last, gates_of(gates), taps); },
          py::arg("state"), py::arg("first"), py::arg("last"), py::arg("gates") = GateSet(),
          py::arg("taps") = nullptr, Unlocked(), "ModelState after the layers first .. last-1.")
      .def("head", &GatedModel::head, py::arg("state"), Unlocked(),
           "Task output from the last state.")
      .def("select", &GatedModel::select, py::arg("state"), py::arg("index"), Unlocked(),
           "The state of these samples, in this order; ``index``: int64 [n].")
      .def("attention", &GatedModel::attention, py::arg("layer"), Unlocked(),
           "AttentionWeights of the heads physically there.")
      .def("replace_attention", &GatedModel::replace_attention, py::arg("layer"),
           py::arg("weights"), py::arg("kept"), Unlocked(),
           "Puts new weights in place; ``kept``: the original indices of their heads.")
      .def("gated_units", &GatedModel::gated_units, Unlocked(), "What has gates beside heads.")
      .def(
          "check",
          [](GatedModel& model, const AnyGates& gates, int64_t batch) {
            model.check("gates", batch, gates_of(gates));
          },
          py::arg("gates"), py::arg("batch") = -1, Unlocked(),
          "Raises ValueError if gates do not fit the model, or gate what has no gates in it.")
      .def("neurons", &GatedModel::neurons, Unlocked(),
           "Neurons physically there, bool [layers, neurons]; ValueError if they are not shown.")
      .def("feed_forward", &GatedModel::feed_forward, py::arg("layer"), Unlocked(),
           "FeedForwardWeights of the neurons physically there.")
      .def("replace_feed_forward", &GatedModel::replace_feed_forward, py::arg("layer"),
           py::arg("weights"), py::arg("kept"), Unlocked(),
           "Puts new weights in place; ``kept``: the original indices of their neurons.")
      .def("sublayers", &GatedModel::sublayers, Unlocked(), "Sublayers: which blocks are there.")
      .def("set_sublayers", &GatedModel::set_sublayers, py::arg("open"), Unlocked(),
           "Opens and closes whole blocks; one that is closed adds nothing, not even its bias.")
      .def("is_whole", &GatedModel::is_whole, Unlocked(),
           "Whether no head, neuron or block was removed.")
      .def("parameters", &GatedModel::parameters, Unlocked(),
           "(name, tensor) of everything that defines the function.")
      .def("fingerprint", &GatedModel::fingerprint, Unlocked(),
           "SHA-256 over names, dtypes, shapes and bytes of ``parameters()``.")
      .def(
          "__call__",
          [](GatedModel& model, const Batch& batch, const AnyGates& gates, Taps* taps) {
            return model(batch, gates_of(gates), taps);
          },
          py::arg("batch"), py::arg("gates") = GateSet(), py::arg("taps") = nullptr, Unlocked(),
          "Task output for a batch; ``gates``: a GateSet, a HeadMask, or a tensor [L, H] or "
          "[B, L, H].");

  m.def(
      "sentence_embedding",
      [](const at::Tensor& hidden, std::optional<at::Tensor> attention_mask) {
        return sentence_embedding(hidden, or_undefined(attention_mask));
      },
      py::arg("hidden"), py::arg("attention_mask") = py::none(), Unlocked(), R"pbdoc(
Mean over valid tokens, L2-normalised: [batch, tokens, D] -> [batch, D].

Source:
    Reimers, Gurevych 2019.
Example:
    >>> headkit.sentence_embedding(torch.tensor([[[3.0, 0.0], [3.0, 8.0]]]))
    tensor([[0.6000, 0.8000]])
)pbdoc");
  m.def("with_sentence_probe", &with_sentence_probe, py::arg("model"), py::arg("weight"),
        py::arg("bias"), Unlocked(), R"pbdoc(
A model that ends in a linear classifier on the sentence embedding of ``model``.

Args:
    model: any GatedModel; it is shared, not copied.
    weight: shape [classes, model_dim].
    bias: shape [classes].
)pbdoc");
  m.def("with_sentence_embedding", &with_sentence_embedding, py::arg("model"), Unlocked(),
        "A model whose output is the sentence embedding of ``model``, [batch, model_dim].");
}

void register_objectives(py::module_& m) {
  py::class_<Objective, std::shared_ptr<Objective>>(m, "Objective", R"pbdoc(
A loss per example.

Example:
    >>> loss = headkit.make_objective("cross_entropy")
    >>> loss(torch.zeros(1, 2), {"labels": torch.tensor([1])})
    tensor([0.6931])
)pbdoc")
      .def_property_readonly("name", &Objective::name)
      .def_property_readonly("needs_dense", &Objective::needs_dense,
                             "Whether ``dense``, the outputs with all gates 1, is needed.")
      .def_property_readonly("stationary_at_dense", &Objective::stationary_at_dense,
                             "Whether every first-order score at the dense model is zero.")
      .def(
          "__call__",
          [](const Objective& objective, const at::Tensor& output, const Batch& batch,
             std::optional<at::Tensor> dense) {
            return objective.loss(output, batch, or_undefined(dense));
          },
          py::arg("output"), py::arg("batch") = Batch(), py::arg("dense") = py::none(),
          py::call_guard<py::gil_scoped_release>(), "Losses, shape [batch].");
  m.def("data_hash", &data_hash, py::arg("data"), py::call_guard<py::gil_scoped_release>(), R"pbdoc(
SHA-256 of a set of examples: the same whatever their order, batches and padding (of tensors with an
``attention_mask``), another one if a byte of an example differs.

Args:
    data: as for ``score``.
Returns:
    str: 64 hexadecimal digits; "" for data without examples.
Example:
    >>> one = [{"input_ids": torch.tensor([[1, 2], [3, 4]])}]
    >>> other = [{"input_ids": torch.tensor([[3, 4]])}, {"input_ids": torch.tensor([[1, 2]])}]
    >>> headkit.data_hash(one) == headkit.data_hash(other)
    True
)pbdoc");
  m.def("shared_examples", &shared_examples, py::arg("data"), py::arg("other"),
        py::call_guard<py::gil_scoped_release>(), R"pbdoc(
How many examples of ``data`` are among those of ``other``.

Args:
    data, other: as for ``score``.
Example:
    >>> one = [{"input_ids": torch.tensor([[1, 2], [3, 4]])}]
    >>> headkit.shared_examples(one, [{"input_ids": torch.tensor([[3, 4]])}])
    1
)pbdoc");
  m.def("make_objective", &make_objective, py::arg("name"), "An objective by name.");
  m.def("objective_names", &objective_names, "The names that make_objective knows.");
}

}  // namespace

void register_models(py::module_& m) {
  register_data(m);
  register_state(m);
  register_gated_model(m);
  register_objectives(m);
}

}  // namespace headkit::bindings
