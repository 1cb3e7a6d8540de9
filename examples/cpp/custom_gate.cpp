// A gate of one's own: short texts run a few heads of each layer, long ones all.
//
//     custom_gate FOLDER               of Hugging Face, or one that headkit wrote

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <headkit/headkit.h>

#include <iostream>

namespace {

class LengthGate final : public headkit::GatePolicy {
 public:
  LengthGate(headkit::HeadMask few, int64_t longest) : few_(std::move(few)), longest_(longest) {}
  std::string name() const override { return "length"; }

  headkit::GateSet decide(const headkit::GateInput& input, State&) const override {
    const int64_t batch = input.hidden.size(0);
    const at::Tensor tokens = input.attention_mask.defined()
                                  ? input.attention_mask.sum(1)
                                  : at::full({batch}, input.hidden.size(1), at::kLong);
    const at::Tensor is_long = tokens.gt(longest_).reshape({batch, 1, 1});
    headkit::GateSet gates;
    gates.heads = is_long.logical_or(few_.keep()).to(at::kFloat);  // [batch, layers, heads]
    return gates;
  }
  std::string to_json() const override {
    return R"({"policy": "length", "version": 1, "longest": )" + std::to_string(longest_) +
           R"(, "few": )" + few_.to_json() + "}";
  }

 private:
  headkit::HeadMask few_;
  int64_t longest_;
};

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 2) {
    std::cerr << "usage: custom_gate FOLDER\n";
    return 2;
  }
  const auto model = headkit::load_encoder(argv[1]).model;
  const headkit::HeadLayout layout = model->layout();
  at::Tensor few = at::zeros({layout.layers, layout.heads}, at::kBool);
  few.slice(1, 0, 2).fill_(true);
  const LengthGate gate(headkit::HeadMask(few), 8);

  at::Tensor mask = at::ones({2, 20}, at::kLong);
  mask[1].slice(0, 5).zero_();  // the second text has 5 tokens, the others are padding
  const at::Tensor ids = at::randint(model->config().vocabulary, {2, 20}, at::kLong);
  const c10::NoGradGuard no_grad;
  const headkit::PolicyRun run =
      headkit::run_policy(*model, {{"input_ids", ids}, {"attention_mask", mask}}, gate);
  std::cout << "20 tokens: " << run.heads_run[0].item<int64_t>() << " of " << layout.total_heads()
            << " heads; 5 tokens: " << run.heads_run[1].item<int64_t>() << "\n";
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
