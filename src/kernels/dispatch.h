#pragma once

#include "kernels/kernel_table.h"

namespace headkit::kernels {

// Levels that this build holds and this machine can run, from slowest to fastest.
int isa_count();
const char* isa_name(int index);
const KernelTable& kernel_table_at(int index);

// The level in use, chosen at the first call: the fastest, or the one that the environment variable
// HEADKIT_ISA names. Throws std::runtime_error where that names a level which the build or the
// machine lacks.
const KernelTable& kernel_table();

}  // namespace headkit::kernels
