#include <headkit/persistence/encoder_folder.h>
#include <pybind11/stl/filesystem.h>

#include <filesystem>

#include "tensor_binding.h"

namespace py = pybind11;

namespace headkit::bindings {

void register_encoder(py::module_& m) {
  using Unlocked = py::call_guard<py::gil_scoped_release>;
  py::classh<Encoder, GatedModel>(m, "Encoder", R"pbdoc(
An encoder of Hugging Face that runs without transformers: see ``load_encoder``.

A GatedModel whose parameters, fingerprint and outputs are those of the attached transformers model.
A batch holds ``input_ids`` (``attention_mask``, ``token_type_ids``, ``position_ids``) or
``pixel_values``. Parameters take gradients; there is no dropout.
)pbdoc")
      .def_property_readonly(
          "architecture", [](const Encoder& model) { return model.config().architecture; },
          "The class in transformers.")
      .def_property_readonly(
          "config", [](const Encoder& model) { return model.config().json; },
          "JSON text of config.json.")
      .def("base_fingerprint", &Encoder::base_fingerprint, Unlocked(),
           "Fingerprint of the model before anything was removed; \"\" while nothing is.");

  py::class_<SavedEncoder>(m, "SavedEncoder", R"pbdoc(
What ``load_encoder`` found in a folder.

Attributes:
    model: Encoder.
    gates: GateSet that belongs to the model; may be empty.
    policy: GatePolicy saved with it, or None.
)pbdoc")
      .def_readonly("model", &SavedEncoder::model)
      .def_readonly("gates", &SavedEncoder::gates)
      .def_property_readonly(
          "policy", [](const SavedEncoder& saved) -> std::optional<std::shared_ptr<GatePolicy>> {
            if (saved.policy == nullptr) return std::nullopt;
            return saved.policy;
          });

  m.def(
      "load_encoder",
      [](const std::filesystem::path& folder, const std::optional<std::string>& architecture,
         std::optional<at::ScalarType> dtype) {
        return load_encoder(folder.string(), {architecture.value_or(""), dtype});
      },
      py::arg("folder"), py::kw_only(), py::arg("architecture") = py::none(),
      py::arg("dtype") = py::none(), Unlocked(), R"pbdoc(
Load an encoder natively: by C++ alone, as a program without Python does.

Args:
    folder: config.json with model.safetensors (BERT, RoBERTa, XLM-RoBERTa, DistilBERT, ViT, with or
        without a classifier), or what ``save`` wrote of such a model.
    architecture: the class, where config.json names none or another one.
    dtype: of the weights; None = as they lie in the file.
Returns:
    SavedEncoder
Raises:
    RuntimeError: for files that are missing, damaged or contradict each other, and for a model that
        is not computed here.
    ValueError: for a policy that was calibrated for another model.
Example:
    >>> import transformers
    >>> config = transformers.BertConfig(
    ...     vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=4
    ... )
    >>> transformers.BertModel(config).save_pretrained("plain")
    >>> model = headkit.load_encoder("plain").model
    >>> model({"input_ids": torch.tensor([[1, 2, 3]])}).shape
    torch.Size([1, 3, 24])
)pbdoc");

  m.def("describe_encoder", &describe_encoder, py::arg("model"), Unlocked(),
        "ModelFolder that saves an Encoder as it is, for ``load`` and ``load_encoder``.");
}

}  // namespace headkit::bindings
