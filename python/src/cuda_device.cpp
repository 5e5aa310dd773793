// SPDX-License-Identifier: Apache-2.0
#include "cuda_device.hpp"

#if MIXGEMM_HAS_CUDA
#include <cuda_runtime_api.h>
#endif

namespace mixgemm::python {

#if MIXGEMM_HAS_CUDA

namespace {

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();
  throw Error(StatusCode::device_error,
              cat(what, ": CUDA error ", static_cast<int>(error), " (", cudaGetErrorName(error),
                  "): ", cudaGetErrorString(error)));
}

}  // namespace

int current_cuda_device() {
  int ordinal = 0;
  check(cudaGetDevice(&ordinal), "asking for the current CUDA device");
  return ordinal;
}

int num_cuda_devices() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();
  return 0;
}

void wait_for_stream(int ordinal, void* stream) {
  const DeviceGuard guard({Device::cuda, ordinal});
  check(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)), "waiting for the stream");
}

bool may_be_capturing(void* stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  if (cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &status) == cudaSuccess) {
    return status != cudaStreamCaptureStatusNone;
  }
  cudaGetLastError();  // the legacy default stream doesn't answer while another one is captured
  return true;
}

DeviceGuard::DeviceGuard(Place place) {
  if (place.device != Device::cuda) return;
  const int current = current_cuda_device();
  if (current == place.ordinal) return;
  check(cudaSetDevice(place.ordinal), "making the arrays' CUDA device current");
  before_ = current;
}

DeviceGuard::~DeviceGuard() {
  if (before_ >= 0) cudaSetDevice(before_);
}

#else

int current_cuda_device() {
  throw Error(StatusCode::unsupported, "this build of mixgemm has no CUDA support");
}
int num_cuda_devices() { return 0; }
void wait_for_stream(int, void*) { current_cuda_device(); }
bool may_be_capturing(void*) { return true; }
DeviceGuard::DeviceGuard(Place) {}
DeviceGuard::~DeviceGuard() = default;

#endif

}  // namespace mixgemm::python
