// Serves an encoder without Python: its weights as they were saved, what was removed from it, and
// its policy.
//
//     serve_pruned FOLDER ID...        the token ids of one text, as the model's tokenizer gives
//     them

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <headkit/headkit.h>

#include <cstdlib>
#include <iostream>

int main(int argc, char** argv) try {
  if (argc < 3) {
    std::cerr << "usage: serve_pruned FOLDER ID...\n";
    return 2;
  }
  std::vector<int64_t> ids;
  for (int i = 2; i < argc; ++i) ids.push_back(std::atoll(argv[i]));
  const headkit::Batch batch{{"input_ids", at::tensor(ids, at::kLong).unsqueeze(0)}};

  auto [model, gates, policy] = headkit::load_encoder(argv[1]);
  if (policy == nullptr) policy = std::make_shared<headkit::MaskPolicy>(model->heads());

  const c10::NoGradGuard no_grad;
  const headkit::PolicyRun run = headkit::run_policy(*model, batch, *policy);
  std::cout << model->config().architecture << " gives " << run.output.sizes() << ":\n"
            << run.output.flatten().slice(0, 0, 8) << "\n"
            << run.heads_run.item<int64_t>() << " of " << model->layout().total_heads()
            << " heads ran:\n";
  for (int64_t layer = 0; layer < model->layout().layers; ++layer) {
    std::cout << "layer " << layer << ":";
    for (int64_t head = 0; head < model->layout().heads; ++head) {
      if (run.gates.heads[0][layer][head].item<double>() != 0) std::cout << " " << head;
    }
    std::cout << "\n";
  }
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
