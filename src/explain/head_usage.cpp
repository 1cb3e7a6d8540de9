#include "headkit/explain/head_usage.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <cmath>
#include <unordered_map>

#include "headkit/core/error.h"
#include "headkit/gates/run_policy.h"

namespace headkit {
namespace {

constexpr auto kOperation = "head_usage";

// Ids of the valid tokens of each example of a batch.
std::vector<std::vector<int64_t>> tokens_of(const Batch& batch) {
  const auto found = batch.find("input_ids");
  HEADKIT_CHECK(
      found != batch.end() && found->second.dim() == 2 && !found->second.is_floating_point(),
      "token_surprise", "batches with whole numbers [B, T] as 'input_ids'",
      found == batch.end() ? "none" : c10::str("shape ", found->second.sizes()));
  const at::Tensor ids = found->second.to(at::kCPU, at::kLong).contiguous();
  at::Tensor valid = at::ones(ids.sizes(), at::kBool);
  if (const auto mask = batch.find("attention_mask");
      mask != batch.end() && mask->second.sizes() == ids.sizes()) {
    valid = mask->second.to(at::kCPU, at::kBool).contiguous();
  }
  std::vector<std::vector<int64_t>> tokens(static_cast<size_t>(ids.size(0)));
  for (int64_t i = 0; i < ids.numel(); ++i) {
    if (!valid.const_data_ptr<bool>()[i]) continue;
    tokens[static_cast<size_t>(i / ids.size(1))].push_back(ids.const_data_ptr<int64_t>()[i]);
  }
  return tokens;
}

bool has_tokens(const DataSource& data) {
  bool all = true;
  data.for_each([&](const Batch& batch) {
    const auto ids = batch.find("input_ids");
    all = all && ids != batch.end() && ids->second.dim() == 2 && !ids->second.is_floating_point();
  });
  return all;
}

}  // namespace

at::Tensor token_surprise(const DataSource& data) {
  std::unordered_map<int64_t, double> counts;
  double total = 0;
  data.for_each([&](const Batch& batch) {
    for (const std::vector<int64_t>& tokens : tokens_of(batch)) {
      for (const int64_t token : tokens) ++counts[token];
      total += static_cast<double>(tokens.size());
    }
  });
  std::vector<double> surprise;
  data.for_each([&](const Batch& batch) {
    for (const std::vector<int64_t>& tokens : tokens_of(batch)) {
      double bits = 0;
      for (const int64_t token : tokens) bits -= std::log2(counts.at(token) / total);
      surprise.push_back(tokens.empty() ? 0 : bits / static_cast<double>(tokens.size()));
    }
  });
  return at::tensor(surprise, at::kDouble);
}

CorpusReport head_usage(GatedModel& model, const DataSource& data, const GatePolicy& policy,
                        const HeadUsageOptions& options) {
  std::map<std::string, at::Tensor> given = options.properties;
  for (auto& [name, values] : given) {
    HEADKIT_CHECK(values.defined() && values.dim() == 1, kOperation,
                  "values of shape [inputs] as " + name,
                  values.defined() ? c10::str("shape ", values.sizes()) : "none");
    values = values.detach().to(at::kCPU, at::kDouble).contiguous();
  }
  if (given.count("complexity") == 0 && has_tokens(data)) {
    given["complexity"] = token_surprise(data);
  }
  std::vector<std::string> names;
  for (const auto& [name, values] : given) names.push_back(name);
  if (options.classes) names.push_back("confidence");
  CorpusView view(names);
  const at::NoGradGuard no_grad;
  const auto mode = model.evaluating();
  const int64_t total = data.size().value_or(-1);
  int64_t batches = 0, inputs = 0;
  data.for_each([&](const Batch& batch) {
    const PolicyRun run = run_policy(model, batch, policy, {.record = true, .first_input = inputs});
    at::Tensor sure, predicted;
    if (options.classes) {
      HEADKIT_CHECK(
          run.output.dim() == 2 && run.output.size(1) > 1 && run.output.is_floating_point(),
          kOperation, "outputs that are logits [batch, classes], of two or more",
          run.output.sizes());
      std::tie(sure, predicted) = at::softmax(run.output.to(at::kCPU, at::kDouble), 1).max(1);
    }
    int64_t row = 0;
    for (const DecisionRecord& record : run.records) {
      std::vector<double> values;
      for (const auto& [name, all] : given) {
        HEADKIT_CHECK(inputs < all.size(0), kOperation, "a value of " + name + " for each input",
                      all.size(0), " of them");
        values.push_back(all.const_data_ptr<double>()[inputs]);
      }
      std::string label;
      if (options.classes) {
        values.push_back(sure[row].item<double>());
        const auto number = static_cast<size_t>(predicted[row].item<int64_t>());
        label = number < options.class_names.size() ? options.class_names[number]
                                                    : std::to_string(number);
      }
      view.add(record, values, label);
      if (options.visit) options.visit(record);
      ++row;
      ++inputs;
    }
    if (options.progress) options.progress(++batches, total);
  });
  for (const auto& [name, all] : given) {
    HEADKIT_CHECK(all.size(0) == inputs, kOperation,
                  c10::str("values of ", name, " for ", inputs, " inputs"), all.size(0));
  }
  return view.report(options.confidence);
}

}  // namespace headkit
