// TensorFlow.js as the page of --format=web needs it: the engine, the CPU backend, and the kernels
// and gradients behind what ../anpvs_tf/serving/web/network.js calls. BUILD.md says how to build it.

import {env} from "@tensorflow/tfjs-core/dist/environment";
import {registerGradient, registerKernel} from "@tensorflow/tfjs-core/dist/kernel_registry";
import {setOpHandler} from "@tensorflow/tfjs-core/dist/tensor";
import {buffer, cast, clone, print} from "@tensorflow/tfjs-core/dist/ops/ops";
import {isTypedArrayBrowser} from "@tensorflow/tfjs-core/dist/platforms/is_typed_array_browser";
import "@tensorflow/tfjs-core/dist/flags";
import "@tensorflow/tfjs-backend-cpu/dist/base";

import {addGradConfig as add} from "@tensorflow/tfjs-core/dist/gradients/Add_grad";
import {avgPoolGradConfig as avgPool} from "@tensorflow/tfjs-core/dist/gradients/AvgPool_grad";
import {batchMatMulGradConfig as batchMatMul} from "@tensorflow/tfjs-core/dist/gradients/BatchMatMul_grad";
import {castGradConfig as castBack} from "@tensorflow/tfjs-core/dist/gradients/Cast_grad";
import {conv2DGradConfig as conv2D} from "@tensorflow/tfjs-core/dist/gradients/Conv2D_grad";
import {depthwiseConv2dNativeGradConfig as depthwiseConv2d} from "@tensorflow/tfjs-core/dist/gradients/DepthwiseConv2dNative_grad";
import {maxPoolGradConfig as maxPool} from "@tensorflow/tfjs-core/dist/gradients/MaxPool_grad";
import {meanGradConfig as mean} from "@tensorflow/tfjs-core/dist/gradients/Mean_grad";
import {multiplyGradConfig as multiply} from "@tensorflow/tfjs-core/dist/gradients/Multiply_grad";
import {negGradConfig as negate} from "@tensorflow/tfjs-core/dist/gradients/Neg_grad";
import {reluGradConfig as relu} from "@tensorflow/tfjs-core/dist/gradients/Relu_grad";
import {reshapeGradConfig as reshape} from "@tensorflow/tfjs-core/dist/gradients/Reshape_grad";
import {sigmoidGradConfig as sigmoid} from "@tensorflow/tfjs-core/dist/gradients/Sigmoid_grad";
import {sumGradConfig as sum} from "@tensorflow/tfjs-core/dist/gradients/Sum_grad";
import {tanhGradConfig as tanh} from "@tensorflow/tfjs-core/dist/gradients/Tanh_grad";

import {addConfig} from "@tensorflow/tfjs-backend-cpu/dist/kernels/Add";
import {avgPoolConfig} from "@tensorflow/tfjs-backend-cpu/dist/kernels/AvgPool";
import {avgPoolGradConfig} from "@tensorflow/tfjs-backend-cpu/dist/kernels/AvgPoolGrad";
import {batchMatMulConfig} from "@tensorflow/tfjs-backend-cpu/dist/kernels/BatchMatMul";
import {castConfig} from "@tensorflow/tfjs-backend-cpu/dist/kernels/Cast";
import {conv2DConfig} from "@tensorflow/tfjs-backend-cpu/dist/kernels/Conv2D";
import {conv2DBackpropInputConfig} from "@tensorflow/tfjs-backend-cpu/dist/kernels/Conv2DBackpropInput";
import {depthwiseConv2dNativeConfig} from "@tensorflow/tfjs-backend-cpu/dist/kernels/DepthwiseConv2dNative";
import {depthwiseConv2dNativeBackpropInputConfig} from "@tensorflow/tfjs-backend-cpu/dist/kernels/DepthwiseConv2dNativeBackpropInput";
import {expConfig} from "@tensorflow/tfjs-backend-cpu/dist/kernels/Exp";
import {identityConfig} from "@tensorflow/tfjs-backend-cpu/dist/kernels/Identity";
import {logConfig} from "@tensorflow/tfjs-backend-cpu/dist/kernels/Log";
import {maxConfig} from "@tensorflow/tfjs-backend-cpu/dist/kernels/Max";
import {maxPoolConfig} from "@tensorflow/tfjs-backend-cpu/dist/kernels/MaxPool";
import {maxPoolGradConfig} from "@tensorflow/tfjs-backend-cpu/dist/kernels/MaxPoolGrad";
import {meanConfig} from "@tensorflow/tfjs-backend-cpu/dist/kernels/Mean";
import {multiplyConfig} from "@tensorflow/tfjs-backend-cpu/dist/kernels/Multiply";
import {negConfig} from "@tensorflow/tfjs-backend-cpu/dist/kernels/Neg";
import {reluConfig} from "@tensorflow/tfjs-backend-cpu/dist/kernels/Relu";
import {reshapeConfig} from "@tensorflow/tfjs-backend-cpu/dist/kernels/Reshape";
import {sigmoidConfig} from "@tensorflow/tfjs-backend-cpu/dist/kernels/Sigmoid";
import {stepConfig} from "@tensorflow/tfjs-backend-cpu/dist/kernels/Step";
import {squareConfig} from "@tensorflow/tfjs-backend-cpu/dist/kernels/Square";
import {subConfig} from "@tensorflow/tfjs-backend-cpu/dist/kernels/Sub";
import {sumConfig} from "@tensorflow/tfjs-backend-cpu/dist/kernels/Sum";
import {tanhConfig} from "@tensorflow/tfjs-backend-cpu/dist/kernels/Tanh";
import {realDivConfig} from "@tensorflow/tfjs-backend-cpu/dist/kernels/RealDiv";

setOpHandler({buffer, cast, clone, print});
// In a browser and under Node.js alike, and without the core's own: that can load models.
env().setPlatform("page", {isTypedArray: isTypedArrayBrowser, now: () => performance.now()});
const gradients = [
  add, avgPool, batchMatMul, castBack, conv2D, depthwiseConv2d, maxPool, mean,
  multiply, negate, relu, reshape, sigmoid, sum, tanh,
];
const kernels = [
  addConfig,
  avgPoolConfig,
  avgPoolGradConfig,
  batchMatMulConfig,
  castConfig,
  conv2DConfig,
  conv2DBackpropInputConfig,
  depthwiseConv2dNativeConfig,
  depthwiseConv2dNativeBackpropInputConfig,
  expConfig,
  identityConfig,
  logConfig,
  maxConfig,
  maxPoolConfig,
  maxPoolGradConfig,
  meanConfig,
  multiplyConfig,
  negConfig,
  reluConfig,
  reshapeConfig,
  sigmoidConfig,
  stepConfig,
  squareConfig,
  subConfig,
  sumConfig,
  tanhConfig,
  realDivConfig,
];
gradients.forEach(registerGradient);
kernels.forEach(registerKernel);

export {keep, tidy} from "@tensorflow/tfjs-core/dist/globals";
export {grad} from "@tensorflow/tfjs-core/dist/gradients";
export {
  add, avgPool, conv2d, depthwiseConv2d, logSoftmax, matMul, maxPool,
  mean, mul, neg, relu, reshape, sigmoid, sum, tanh, tensor, tensor1d,
} from "@tensorflow/tfjs-core/dist/ops/ops";
