#include <headkit/core/error.h>
#include <headkit/explain/audio_roles.h>
#include <headkit/explain/gold_alignment.h>
#include <headkit/explain/image_roles.h>
#include <headkit/explain/syntactic_roles.h>

#include <functional>

#include "optional_tensor.h"
#include "python_progress.h"
#include "tensor_binding.h"

namespace py = pybind11;

namespace headkit::bindings {
namespace {

using Unlocked = py::call_guard<py::gil_scoped_release>;
using RolePointer = std::unique_ptr<RoleAccumulator>;

// One pass of the model over the data for some accumulators; `known` examples are expected, or any
// number if it is negative.
RoleTable table_of(const char* operation, GatedModel& model, const DataSource& data, int64_t known,
                   const RoleMeasure& measure, const Progress& progress,
                   std::vector<RolePointer> accumulators) {
  const int64_t seen =
      accumulate_roles(model, data, {.progress = interruptible(progress)}, accumulators);
  HEADKIT_CHECK(known < 0 || seen == known, operation,
                "an example for each of " + std::to_string(known), seen);
  return finish_roles(model, seen, measure, accumulators);
}

std::vector<RolePointer> only(RolePointer accumulator) {
  std::vector<RolePointer> all;
  all.push_back(std::move(accumulator));
  return all;
}

RoleTable find_syntactic(GatedModel& model, const DataSource& data,
                         const std::vector<SequenceSyntax>& syntax, int64_t minimum_arcs,
                         const RoleMeasure& measure, const Progress& progress) {
  return table_of("syntactic_roles", model, data, static_cast<int64_t>(syntax.size()), measure,
                  progress, only(syntactic_roles(model.layout(), syntax, measure, minimum_arcs)));
}

RoleTable find_alignment(GatedModel& model, const DataSource& data,
                         const std::vector<std::vector<int64_t>>& targets,
                         const std::vector<std::vector<int64_t>>& candidates, bool cross,
                         const RoleMeasure& measure, const Progress& progress) {
  HEADKIT_CHECK(candidates.empty() || candidates.size() == targets.size(), "gold_alignment",
                "candidates of every example, or none", candidates.size(), " for ", targets.size());
  std::vector<GoldAlignment> gold(targets.size());
  for (size_t i = 0; i < targets.size(); ++i) {
    gold[i].target_of_token = targets[i];
    if (!candidates.empty()) gold[i].candidates = candidates[i];
  }
  return table_of("gold_alignment", model, data, static_cast<int64_t>(targets.size()), measure,
                  progress, only(gold_alignment_role(model.layout(), gold, measure, cross)));
}

RoleTable find_image(GatedModel& model, const DataSource& data, const PatchGrid& grid,
                     const std::optional<at::Tensor>& masks, const RoleMeasure& measure,
                     const Progress& progress) {
  const ImageKnowledge known{.masks = or_undefined(masks), .norms = final_token_norms(model, data)};
  return table_of("image_roles", model, data, masks ? masks->size(0) : -1, measure, progress,
                  only(image_roles(model.layout(), grid, known, measure)));
}

RoleTable find_audio(GatedModel& model, const DataSource& data, double hop,
                     const std::optional<std::vector<std::vector<double>>>& times,
                     const RoleMeasure& measure, const Progress& progress) {
  std::vector<RolePointer> accumulators = only(audio_roles(model.layout(), hop));
  if (times) {
    accumulators.push_back(time_alignment_role(model.layout(), hop, *times, measure));
  }
  return table_of("audio_roles", model, data, times ? static_cast<int64_t>(times->size()) : -1,
                  measure, progress, std::move(accumulators));
}

}  // namespace

void register_known_roles(py::module_& m) {
  py::class_<RoleMeasure>(m, "RoleMeasure", R"pbdoc(
How nulls and intervals of roles are measured.

Args:
    draws: shuffles behind a null.
    bootstrap: resamples over sequences for the interval; 0 = no interval, and so no label.
    confidence: level of the interval.
    seed: of draws and resamples.
)pbdoc")
      .def(py::init([](int64_t draws, int64_t bootstrap, double confidence, uint64_t seed) {
             HEADKIT_CHECK(draws >= 0 && bootstrap >= 0 && confidence > 0 && confidence < 1,
                           "roles", "draws and bootstrap of at least 0, confidence in (0, 1)",
                           draws, ", ", bootstrap, " and ", confidence);
             return RoleMeasure{draws, bootstrap, confidence, seed};
           }),
           py::kw_only(), py::arg("draws") = 200, py::arg("bootstrap") = 1000,
           py::arg("confidence") = 0.95, py::arg("seed") = 0)
      .def_readonly("draws", &RoleMeasure::draws)
      .def_readonly("bootstrap", &RoleMeasure::bootstrap)
      .def_readonly("confidence", &RoleMeasure::confidence)
      .def_readonly("seed", &RoleMeasure::seed);
  py::class_<PatchGrid>(m, "PatchGrid", R"pbdoc(
Where the patches of an image are among the tokens: row by row from ``first_patch`` on.

Args:
    rows, columns: of patches.
    first_patch: tokens before them (CLS, registers).
    patch_size: pixels.
    cls: the CLS token, or -1 if there is none.
    registers: register tokens.

Example:
    >>> headkit.PatchGrid(rows=14, columns=14, first_patch=1, patch_size=16).patches
    196
)pbdoc")
      .def(py::init([](int64_t rows, int64_t columns, int64_t first_patch, double patch_size,
                       int64_t cls, std::vector<int64_t> registers) {
             return PatchGrid{rows, columns, first_patch, patch_size, cls, std::move(registers)};
           }),
           py::kw_only(), py::arg("rows"), py::arg("columns"), py::arg("first_patch") = 1,
           py::arg("patch_size") = 1.0, py::arg("cls") = 0,
           py::arg("registers") = std::vector<int64_t>())
      .def_readonly("rows", &PatchGrid::rows)
      .def_readonly("columns", &PatchGrid::columns)
      .def_readonly("first_patch", &PatchGrid::first_patch)
      .def_readonly("patch_size", &PatchGrid::patch_size)
      .def_readonly("cls", &PatchGrid::cls)
      .def_readonly("registers", &PatchGrid::registers)
      .def_property_readonly("patches", &PatchGrid::patches, "How many there are.");
  m.def("find_syntactic_roles", &find_syntactic, py::arg("model"), py::arg("data"),
        py::arg("syntax"), py::arg("minimum_arcs"), py::arg("measure"), py::arg("progress"),
        Unlocked(), "See headkit.syntactic_roles.");
  m.def("find_gold_alignment", &find_alignment, py::arg("model"), py::arg("data"),
        py::arg("targets"), py::arg("candidates"), py::arg("cross"), py::arg("measure"),
        py::arg("progress"), Unlocked(), "See headkit.gold_alignment.");
  m.def("find_image_roles", &find_image, py::arg("model"), py::arg("data"), py::arg("grid"),
        py::arg("masks"), py::arg("measure"), py::arg("progress"), Unlocked(),
        "See headkit.image_roles.");
  m.def("find_audio_roles", &find_audio, py::arg("model"), py::arg("data"), py::arg("hop"),
        py::arg("times"), py::arg("measure"), py::arg("progress"), Unlocked(),
        "See headkit.audio_roles.");
}

}  // namespace headkit::bindings
