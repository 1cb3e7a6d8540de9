#pragma once

#include <c10/core/Device.h>
#include <c10/util/intrusive_ptr.h>

#include <memory>
#include <string>

#include "headkit/distributed/collective.h"

namespace c10d {
class ProcessGroup;
}

namespace headkit {

/// The processes of a group of torch.distributed: gloo with `device` CPU, NCCL with the GPU of this
/// process. Throws std::invalid_argument without a group.
std::unique_ptr<Collective> torch_collective(c10::intrusive_ptr<c10d::ProcessGroup> group,
                                             c10::Device device = c10::Device(c10::kCPU));

/// The same, by the name that torch.distributed registered the group under.
std::unique_ptr<Collective> torch_collective(const std::string& group_name,
                                             c10::Device device = c10::Device(c10::kCPU));

}  // namespace headkit
