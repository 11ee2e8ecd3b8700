// Compiled once for each instruction set, each time into a namespace of its own (CMakeLists.txt).
#include "decode_attention.h"
#include "exponentials.h"
#include "groups.h"
#include "rows.h"
#include "token_objective.h"

namespace FASTGRPO_ARCH {

template <typename T>
Kernels<T> kernels() {
  return {row_stats<T>, row_gradient<T>, exponentials<T>, tokens<T>, response<T>, groups<T>};
}

template Kernels<float> kernels<float>();
template Kernels<double> kernels<double>();

DecodeKernels decode_kernels() { return {decode_attention<float>, decode_attention<uint16_t>}; }

}  // namespace FASTGRPO_ARCH
