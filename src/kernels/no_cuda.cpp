#include "kernels/kernel_table.h"

namespace headkit::kernels {

const CudaKernelTable* cuda_kernel_table() { return nullptr; }

}  // namespace headkit::kernels
