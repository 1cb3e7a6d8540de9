#include "headkit/distributed/torch_collective.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstring>
#include <torch/csrc/distributed/c10d/GroupRegistry.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "headkit/core/error.h"

namespace headkit {
namespace {

constexpr char kName[] = "distributed";

class TorchCollective final : public Collective {
 public:
  TorchCollective(c10::intrusive_ptr<c10d::ProcessGroup> group, c10::Device device)
      : group_(std::move(group)), device_(device) {
    HEADKIT_CHECK(group_.defined(), kName, "a process group", "none");
  }

  int64_t rank() const override { return group_->getRank(); }
  int64_t size() const override { return group_->getSize(); }

  std::vector<std::string> all_gather(const std::string& own) override {
    if (size() == 1) return {own};
    const auto length = static_cast<int64_t>(own.size());
    std::vector<int64_t> lengths;
    for (const at::Tensor& each : gather(at::full({1}, length, at::kLong))) {
      lengths.push_back(each.item<int64_t>());
    }
    const int64_t longest = *std::max_element(lengths.begin(), lengths.end());
    if (longest == 0) return std::vector<std::string>(lengths.size());
    const at::Tensor bytes = at::zeros({longest}, at::kByte);
    if (length > 0) std::memcpy(bytes.mutable_data_ptr(), own.data(), own.size());
    std::vector<std::string> all;
    for (const at::Tensor& each : gather(bytes)) {
      const auto count = static_cast<size_t>(lengths[all.size()]);
      all.emplace_back(static_cast<const char*>(each.const_data_ptr()), count);
    }
    return all;
  }

 private:
  std::vector<at::Tensor> gather(const at::Tensor& own) {
    std::vector<at::Tensor> inputs{own.to(device_)};
    std::vector<std::vector<at::Tensor>> outputs(1);
    for (int64_t i = 0; i < size(); ++i) outputs[0].push_back(at::empty_like(inputs[0]));
    try {
      group_->allgather(outputs, inputs)->wait();
    } catch (const std::exception& error) {
      throw std::runtime_error(
          error_message(kName, "an answer of all " + std::to_string(size()) + " processes",
                        "one lost or late, as process ", rank(), " sees it: ", error.what()));
    }
    for (at::Tensor& each : outputs[0]) each = each.cpu();
    return outputs[0];
  }

  c10::intrusive_ptr<c10d::ProcessGroup> group_;
  c10::Device device_;
};

}  // namespace

std::unique_ptr<Collective> torch_collective(c10::intrusive_ptr<c10d::ProcessGroup> group,
                                             c10::Device device) {
  return std::make_unique<TorchCollective>(std::move(group), device);
}

std::unique_ptr<Collective> torch_collective(const std::string& group_name, c10::Device device) {
  return torch_collective(c10d::resolve_process_group(group_name), device);
}

}  // namespace headkit
