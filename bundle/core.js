// The core of TensorFlow.js for its CPU backend, in the place of the index that the backend imports:
// that would set up platforms and optimizers, and bring what loads models.

import * as backend_util from "@tensorflow/tfjs-core/dist/backends/backend_util";
import * as broadcast_util from "@tensorflow/tfjs-core/dist/ops/broadcast_util";
import * as gather_util from "@tensorflow/tfjs-core/dist/ops/gather_nd_util";
import * as slice_util from "@tensorflow/tfjs-core/dist/ops/slice_util";
import * as util from "@tensorflow/tfjs-core/dist/util";

export {backend_util, broadcast_util, gather_util, slice_util, util};
export * from "@tensorflow/tfjs-core/dist/globals";
export * from "@tensorflow/tfjs-core/dist/kernel_names";
export * from "@tensorflow/tfjs-core/dist/kernel_registry";
export * from "@tensorflow/tfjs-core/dist/ops/ops";
export * as kernel_impls from "@tensorflow/tfjs-core/dist/backends/kernel_impls";
export {DataStorage, KernelBackend} from "@tensorflow/tfjs-core/dist/backends/backend";
export {TensorBuffer} from "@tensorflow/tfjs-core/dist/tensor";
export {env} from "@tensorflow/tfjs-core/dist/environment";
export {upcastType} from "@tensorflow/tfjs-core/dist/types";
