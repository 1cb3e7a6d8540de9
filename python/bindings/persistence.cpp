#include <headkit/persistence/model_folder.h>
#include <headkit/persistence/safetensors.h>
#include <pybind11/stl/filesystem.h>

#include <filesystem>

#include "optional_tensor.h"
#include "tensor_binding.h"

namespace py = pybind11;

namespace headkit::bindings {
namespace {

using Unlocked = py::call_guard<py::gil_scoped_release>;

void register_safetensors(py::module_& m) {
  m.def(
      "write_safetensors",
      [](const std::filesystem::path& path, const std::map<std::string, at::Tensor>& tensors,
         const std::map<std::string, std::string>& metadata) {
        return write_safetensors(path.string(), {tensors.begin(), tensors.end()}, metadata);
      },
      py::arg("path"), py::arg("tensors"),
      py::arg("metadata") = std::map<std::string, std::string>(), Unlocked(), R"pbdoc(
Write tensors to a safetensors file, whole or not at all.

Args:
    path: the file; an older one is replaced when the new one is complete and on disk.
    tensors: name -> tensor, any device and strides.
    metadata: text -> text.
Returns:
    str: SHA-256 of the file.
Raises:
    ValueError: for a dtype that safetensors lacks.
    RuntimeError: where the disk refuses; the older file is intact then.
)pbdoc");

  m.def(
      "read_safetensors",
      [](const std::filesystem::path& path) {
        const NamedTensors tensors = SafetensorsFile(path.string()).tensors();
        return std::map<std::string, at::Tensor>(tensors.begin(), tensors.end());
      },
      py::arg("path"), Unlocked(), R"pbdoc(
Read a safetensors file; tensors share a mapping of the file (copy on write).

Args:
    path: the file.
Returns:
    dict[str, Tensor]
Raises:
    RuntimeError: if the file is truncated, contradicts itself or cannot be opened.
)pbdoc");
}

void register_model_folder(py::module_& m) {
  py::class_<ModelFolder>(m, "ModelFolder", R"pbdoc(
What a saved model is: see ``save``.

Attributes:
    layout: HeadLayout of the original model.
    heads: HeadMask of what is left.
    neurons: bool, shape [layers, neurons], of what is left; None = all.
    sublayers: Sublayers that are left; empty lists = all.
    base_fingerprint: of the model before any removal.
    gates: GateSet stored with the model; may be empty.
    policy, config, details: JSON text, or "".
    headkit_version, torch_version, weights_sha256: of the folder that was read.
)pbdoc")
      .def_readonly("layout", &ModelFolder::layout)
      .def_readonly("heads", &ModelFolder::heads)
      .def_property_readonly("neurons", [](const ModelFolder& f) { return or_none(f.neurons); })
      .def_readonly("sublayers", &ModelFolder::sublayers)
      .def_readonly("base_fingerprint", &ModelFolder::base_fingerprint)
      .def_readwrite("gates", &ModelFolder::gates)
      .def_readwrite("policy", &ModelFolder::policy)
      .def_readwrite("config", &ModelFolder::config)
      .def_readwrite("details", &ModelFolder::details)
      .def_readonly("headkit_version", &ModelFolder::headkit_version)
      .def_readonly("torch_version", &ModelFolder::torch_version)
      .def_readonly("weights_sha256", &ModelFolder::weights_sha256)
      .def_property_readonly(
          "weights",
          [](const ModelFolder& folder) {
            return std::map<std::string, at::Tensor>(folder.weights.begin(), folder.weights.end());
          },
          "name -> tensor.")
      .def("__repr__", [](const ModelFolder& folder) {
        return "ModelFolder(" + std::to_string(folder.heads.count()) + " of " +
               std::to_string(folder.layout.total_heads()) + " heads, " +
               std::to_string(folder.weights.size()) + " tensors)";
      });
  m.def("describe_model", &describe_model, py::arg("model"), py::arg("base_fingerprint") = "",
        Unlocked(), "ModelFolder that saves a GatedModel as it is.");
  m.def("write_model_folder", &write_model_folder, py::arg("folder"), py::arg("content"),
        Unlocked(), "See headkit.save.");
  m.def(
      "read_model_folder",
      [](const std::filesystem::path& folder) { return read_model_folder(folder.string()); },
      py::arg("folder"), Unlocked(), R"pbdoc(
Read what ``save`` wrote, without building a model.

Args:
    folder: a folder.
Returns:
    ModelFolder
Raises:
    RuntimeError: for a missing, truncated, changed or contradictory file, or a newer schema.
)pbdoc");
  m.def("restore_model", &restore_model, py::arg("model"), py::arg("content"),
        py::arg("check_base") = true, Unlocked(), "See headkit.load.");
}

}  // namespace

void register_persistence(py::module_& m) {
  register_safetensors(m);
  register_model_folder(m);
}

}  // namespace headkit::bindings
