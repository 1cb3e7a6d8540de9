// Explains one text: which heads a policy ran for it and why, what each contributes to the output,
// and what it looks at, as a page for the browser.
//
//     write_report FOLDER PAGE ID...   the token ids, as the model's tokenizer gives them

#include <ATen/ATen.h>
#include <headkit/headkit.h>

#include <cstdlib>
#include <fstream>
#include <iostream>

namespace {

// What the heads look at, in its place in a record.
std::string attention_patch(const std::vector<std::optional<headkit::CodedAttention>>& heads,
                            int64_t heads_per_layer) {
  std::string patch;
  for (size_t place = 0; place < heads.size(); ++place) {
    if (!heads[place]) continue;  // removed from the model
    const auto [layer, head] = std::lldiv(static_cast<int64_t>(place), heads_per_layer);
    patch += (patch.empty() ? "" : ", ") + std::string("{\"layer\": ") + std::to_string(layer) +
             ", \"head\": " + std::to_string(head) + ", \"attention\": " + heads[place]->to_json() +
             "}";
  }
  return "{\"heads\": [" + patch + "]}";
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc < 4) {
    std::cerr << "usage: write_report FOLDER PAGE ID...\n";
    return 2;
  }
  std::vector<int64_t> ids;
  std::vector<headkit::InputUnit> units;
  for (int i = 3; i < argc; ++i) {
    ids.push_back(std::atoll(argv[i]));
    units.push_back({.text = argv[i]});  // the words, where a tokenizer knows them
  }
  const headkit::Batch batch{{"input_ids", at::tensor(ids, at::kLong).unsqueeze(0)}};
  auto [model, gates, policy] = headkit::load_encoder(argv[1]);
  if (policy == nullptr) policy = std::make_shared<headkit::MaskPolicy>(model->heads());

  headkit::DecisionRecord record =
      headkit::explain_decisions(*model, batch, *policy, {.units = {units}}).front();
  headkit::GateSet decided;
  decided.heads = record.gates();
  const auto metric = headkit::default_output_metric(*model, batch);
  const headkit::InputEffects effects =
      headkit::measure_effects(*model, batch, *metric, {.ablation = "zero", .gates = decided})
          .front();
  record = record.with(effects.record_patch());
  const auto attention = headkit::input_attention(*model, batch, decided, {});
  record = record.with(attention_patch(attention.front(), model->layout().heads));

  std::ofstream(argv[2]) << headkit::html_report({record.to_json()});
  for (const headkit::SummaryLine& line : headkit::summarise_record(record.to_json())) {
    std::cout << line.text << "\n";
  }
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
