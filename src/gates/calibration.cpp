#include "headkit/gates/calibration.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <set>

#include "core/json.h"
#include "core/sha256.h"
#include "headkit/core/error.h"
#include "headkit/gates/conformal.h"
#include "headkit/gates/learn_then_test.h"
#include "models/known_fingerprint.h"

namespace headkit {
namespace {

constexpr auto kOperation = "calibrate";
constexpr size_t kIdDigits = 16;

int64_t samples_needed(const CalibrationOptions& options, double bound) {
  HEADKIT_CHECK(options.method == "crc" || options.method == "ltt", kOperation,
                "a method of crc, ltt", options.method);
  return options.method == "crc"
             ? conformal_samples_needed({options.risk, bound})
             : learn_then_test_samples_needed({options.risk, bound, options.delta});
}

std::vector<int64_t> length_edges(const at::Tensor& tokens, const CalibrationOptions& options) {
  std::vector<int64_t> edges = options.length_edges;
  HEADKIT_CHECK(
      std::adjacent_find(edges.begin(), edges.end(), std::greater_equal<>()) == edges.end() &&
          (edges.empty() || edges.front() >= 0),
      kOperation, "length edges that ascend from 0 or more", c10::str(edges));
  if (!edges.empty()) return edges;
  HEADKIT_CHECK(options.length_buckets >= 1, kOperation, "at least one length bucket",
                options.length_buckets);
  const at::Tensor sorted = std::get<0>(tokens.sort());
  const int64_t count = sorted.size(0), longest = sorted[count - 1].item<int64_t>();
  for (int64_t k = 1; k < options.length_buckets; ++k) {
    const int64_t edge =
        sorted[std::max<int64_t>(k * count / options.length_buckets, 1) - 1].item<int64_t>();
    // Equal lengths cannot be told apart: they share a bucket.
    if (edge < longest && (edges.empty() || edge > edges.back())) edges.push_back(edge);
  }
  return edges;
}

// The buckets without results, and the examples of each.
std::vector<std::pair<CalibrationBucket, at::Tensor>> divide(const at::Tensor& tokens,
                                                             const at::Tensor& task,
                                                             const CalibrationOptions& options,
                                                             double bound) {
  const int64_t needed = samples_needed(options, bound);
  HEADKIT_CHECK(tokens.size(0) > 0, kOperation, "calibration examples", "none");
  const std::vector<int64_t> edges = length_edges(tokens, options);
  std::set<int64_t> tasks;
  for (int64_t i = 0; i < task.size(0); ++i) tasks.insert(task[i].item<int64_t>());
  std::vector<std::pair<CalibrationBucket, at::Tensor>> buckets;
  std::string short_of;
  for (const int64_t name : tasks) {
    for (size_t k = 0; k <= edges.size(); ++k) {
      CalibrationBucket bucket;
      bucket.task = name;
      bucket.min_tokens = k == 0 ? 0 : edges[k - 1] + 1;
      if (k < edges.size()) bucket.max_tokens = edges[k];
      at::Tensor inside = (task == name).logical_and(tokens >= bucket.min_tokens);
      if (bucket.max_tokens) inside = inside.logical_and(tokens <= *bucket.max_tokens);
      const at::Tensor index = inside.nonzero().flatten();
      bucket.samples = index.size(0);
      if (bucket.samples < needed) {
        short_of +=
            c10::str(short_of.empty() ? "" : "; ", bucket.samples, " of task ", name, " with ",
                     bucket.min_tokens, " to ",
                     bucket.max_tokens ? std::to_string(*bucket.max_tokens) : "any", " tokens");
      }
      buckets.emplace_back(bucket, index);
    }
  }
  HEADKIT_CHECK(short_of.empty(), kOperation,
                c10::str("at least ", needed, " calibration examples in each bucket, ",
                         needed * static_cast<int64_t>(buckets.size()), " in all, for a risk of ",
                         options.risk, " (", options.method, ")"),
                short_of);
  return buckets;
}

std::vector<double> column_means(const at::Tensor& values) {
  const at::Tensor means = values.mean(0).contiguous();
  const double* const data = means.const_data_ptr<double>();
  return {data, data + means.numel()};
}

Json bucket_to_json(const CalibrationBucket& bucket) {
  return {{"task", bucket.task},
          {"min_tokens", bucket.min_tokens},
          {"max_tokens", bucket.max_tokens ? Json(*bucket.max_tokens) : Json(nullptr)},
          {"samples", bucket.samples},
          {"lambda", bucket.lambda},
          {"empirical_risk", bucket.empirical_risk},
          {"evidence", bucket.evidence}};
}

CalibrationBucket bucket_from_json(const Json& json) {
  CalibrationBucket bucket;
  bucket.task = integer_member(kOperation, json, "task");
  bucket.min_tokens = integer_member(kOperation, json, "min_tokens");
  if (!member(kOperation, json, "max_tokens").is_null()) {
    bucket.max_tokens = integer_member(kOperation, json, "max_tokens");
  }
  bucket.samples = integer_member(kOperation, json, "samples");
  bucket.lambda = number_member(kOperation, json, "lambda");
  bucket.empirical_risk = number_member(kOperation, json, "empirical_risk");
  bucket.evidence = number_member(kOperation, json, "evidence");
  return bucket;
}

std::vector<double> numbers(const Json& json, const char* name) {
  const at::Tensor values = tensor_from_json(kOperation, member(kOperation, json, name), 1);
  const double* const data = values.const_data_ptr<double>();
  return {data, data + values.numel()};
}

}  // namespace

Calibration calibrate(const PolicyTrace& trace, const CalibrationOptions& options) {
  Calibration result;
  result.model = trace.model;
  result.policy = trace.policy;
  result.data = trace.data;
  result.method = options.method;
  result.loss = trace.loss;
  result.bound = trace.bound;
  result.risk = options.risk;
  result.delta = options.method == "ltt" ? options.delta : 0;
  result.grid = checked_grid(kOperation, trace.grid);
  const auto buckets = divide(trace.tokens, trace.task, options, trace.bound);
  result.mean_loss = column_means(trace.losses);
  result.mean_heads = column_means(trace.heads_run);
  result.mean_flops = column_means(trace.flops);
  result.drift = trace.drift.mean().item<double>();
  result.lambda = result.grid.front();
  const at::Tensor grid = at::tensor(result.grid, at::kDouble);
  for (const auto& [empty, index] : buckets) {
    CalibrationBucket bucket = empty;
    const at::Tensor losses = trace.losses.index_select(0, index);
    if (options.method == "crc") {
      const ConformalResult found =
          conformal_risk_control(losses, grid, {options.risk, trace.bound});
      bucket.lambda = found.lambda;
      bucket.empirical_risk = found.empirical_risk;
      bucket.evidence = found.corrected_risk;
    } else {
      const LearnThenTestResult found =
          learn_then_test(losses, grid, {options.risk, trace.bound, options.delta});
      bucket.lambda = found.lambda;
      bucket.empirical_risk = found.empirical_risk;
      bucket.evidence = found.p_value;
    }
    result.lambda = std::max(result.lambda, bucket.lambda);
    result.buckets.push_back(bucket);
  }
  return result;
}

Calibration calibrate(GatedModel& model, const AdjustablePolicy& policy, const DataSource& data,
                      const OutputLoss& loss, const CalibrationOptions& options,
                      const TraceOptions& trace_options) {
  samples_needed(options, loss.bound);
  checked_grid(kOperation, trace_options.grid);
  {
    const at::NoGradGuard no_grad;
    const auto mode = model.evaluating();
    std::vector<at::Tensor> tokens, task;
    data.for_each([&](const Batch& given) {
      Batch batch = given;
      const int64_t count = batch_size(given);
      if (count == 0) return;
      at::Tensor which = at::zeros({count}, at::kLong);
      if (const auto entry = batch.find(trace_options.task_field);
          !trace_options.task_field.empty() && entry != batch.end()) {
        which = entry->second.to(at::kCPU, at::kLong);
        batch.erase(entry);
      }
      tokens.push_back(batch_tokens(model, batch));
      task.push_back(which);
    });
    HEADKIT_CHECK(!tokens.empty(), kOperation, "calibration examples", "none");
    divide(at::cat(tokens), at::cat(task), options, loss.bound);
  }
  return calibrate(trace_policy(model, policy, data, loss, trace_options), options);
}

double Calibration::lambda_of(int64_t tokens, int64_t task) const {
  for (const CalibrationBucket& bucket : buckets) {
    if (bucket.task == task && tokens >= bucket.min_tokens &&
        (!bucket.max_tokens || tokens <= *bucket.max_tokens)) {
      return bucket.lambda;
    }
  }
  return lambda;
}

double Calibration::at_least(double wanted) const {
  check_lambda(kOperation, wanted);
  const double floor = std::max(wanted, lambda);
  const auto place = std::lower_bound(grid.begin(), grid.end(), floor);
  return place == grid.end() ? 1 : *place;
}

void Calibration::check_model(GatedModel& candidate) const {
  const std::string found = known_fingerprint(candidate);
  HEADKIT_CHECK(found == model, "calibration", "the model that was calibrated, " + model, found);
}

void Calibration::check_policy(const AdjustablePolicy& candidate) const {
  const std::string found = policy_fingerprint(candidate);
  HEADKIT_CHECK(found == policy, "calibration", "the policy that was calibrated, " + policy, found);
}

void Calibration::check_data(const DataSource& candidate) const {
  const std::string found = data_fingerprint(candidate);
  HEADKIT_CHECK(found == data, "calibration",
                "the calibration data, " + (data.empty() ? std::string("unknown") : data), found);
}

std::string Calibration::id() const { return sha256_hex(to_json()).substr(0, kIdDigits); }

std::string Calibration::to_json() const {
  Json all = Json::array();
  for (const CalibrationBucket& bucket : buckets) all.push_back(bucket_to_json(bucket));
  return Json{{"version", 1},
              {"model", model},
              {"policy", policy},
              {"data", data},
              {"method", method},
              {"loss", loss},
              {"bound", bound},
              {"risk", risk},
              {"delta", delta},
              {"grid", grid},
              {"mean_loss", mean_loss},
              {"mean_heads", mean_heads},
              {"mean_flops", mean_flops},
              {"drift", drift},
              {"buckets", std::move(all)},
              {"lambda", lambda}}
      .dump();
}

Calibration Calibration::from_json(const std::string& text) {
  const Json json = parse_json("calibration", text);
  const int64_t version = integer_member("calibration", json, "version");
  HEADKIT_CHECK(version == 1, "calibration", "version 1, as this headkit writes", version);
  Calibration result;
  for (const auto& [name, place] :
       {std::pair{"model", &Calibration::model}, std::pair{"policy", &Calibration::policy},
        std::pair{"data", &Calibration::data}, std::pair{"method", &Calibration::method},
        std::pair{"loss", &Calibration::loss}}) {
    result.*place = string_member("calibration", json, name);
  }
  for (const auto& [name, place] :
       {std::pair{"bound", &Calibration::bound}, std::pair{"risk", &Calibration::risk},
        std::pair{"delta", &Calibration::delta}, std::pair{"drift", &Calibration::drift},
        std::pair{"lambda", &Calibration::lambda}}) {
    result.*place = number_member("calibration", json, name);
  }
  result.grid = checked_grid("calibration", numbers(json, "grid"));
  result.mean_loss = numbers(json, "mean_loss");
  result.mean_heads = numbers(json, "mean_heads");
  result.mean_flops = numbers(json, "mean_flops");
  for (const auto* means : {&result.mean_loss, &result.mean_heads, &result.mean_flops}) {
    HEADKIT_CHECK(means->size() == result.grid.size(), "calibration",
                  c10::str("means at ", result.grid.size(), " grid values"), means->size());
  }
  HEADKIT_CHECK(
      std::find(result.grid.begin(), result.grid.end(), result.lambda) != result.grid.end(),
      "calibration", "a lambda of the grid", result.lambda);
  const Json& list = member("calibration", json, "buckets");
  HEADKIT_CHECK(list.is_array(), "calibration", "an array as \"buckets\"", list.type_name());
  for (const Json& bucket : list) result.buckets.push_back(bucket_from_json(bucket));
  return result;
}

}  // namespace headkit
