#include <headkit/pruners/hybrid_pruner.h>
#include <pybind11/functional.h>

#include <optional>

#include "python_data.h"
#include "python_progress.h"
#include "tensor_binding.h"

namespace py = pybind11;

namespace headkit::bindings {

void register_hybrid(py::module_& m) {
  m.def(
      "fit_hybrid",
      [](GatedModel& model, const DataSource& train, const py::object& held_out,
         const std::shared_ptr<Objective>& objective, std::optional<double> mean_heads,
         std::optional<double> flops, std::optional<double> milliseconds,
         const std::string& mechanism, const std::string& order, const std::string& neurons,
         std::vector<double> head_shares, std::vector<double> block_shares, bool compensate,
         int64_t layer, std::vector<std::string> features, int64_t train_steps,
         double learning_rate, int64_t examples, const std::shared_ptr<LatencyModel>& latency,
         uint64_t seed, Progress progress) {
        HybridSettings settings;
        settings.mechanism = mechanism;
        settings.budget = {mean_heads, flops, milliseconds};
        settings.order = order;
        settings.neurons = neurons;
        settings.head_shares = std::move(head_shares);
        settings.block_shares = std::move(block_shares);
        settings.compensate = compensate;
        settings.layer = layer;
        settings.features = std::move(features);
        settings.train = train_steps;
        settings.learning_rate = learning_rate;
        settings.examples = examples;
        settings.latency = latency;
        settings.seed = seed;
        settings.progress = interruptible(std::move(progress));
        const std::shared_ptr<DataSource> kept =
            held_out.is_none() ? nullptr : data_from_python(held_out);
        const py::gil_scoped_release release;
        FittedHybrid fitted = kept != nullptr
                                  ? fit_hybrid(model, train, *kept, *objective, settings)
                                  : fit_hybrid(model, train, *objective, settings);
        return std::make_pair(std::move(fitted.policy), fitted.report.to_json());
      },
      py::arg("model"), py::arg("train"), py::arg("held_out"), py::arg("objective"), py::kw_only(),
      py::arg("mean_heads"), py::arg("flops"), py::arg("milliseconds"), py::arg("mechanism"),
      py::arg("order"), py::arg("neurons"), py::arg("head_shares"), py::arg("block_shares"),
      py::arg("compensate"), py::arg("layer"), py::arg("features"), py::arg("train_steps"),
      py::arg("learning_rate"), py::arg("examples"), py::arg("latency"), py::arg("seed"),
      py::arg("progress"),
      "As headkit.HybridPruner.fit, for a GatedModel: the policy, and the report as JSON.");
}

}  // namespace headkit::bindings
