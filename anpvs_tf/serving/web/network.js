"use strict";

// The networks of the page and the attack on them, by TensorFlow.js (`tf`). It touches nothing of
// the page, so that the check of an export can run it under Node.js.
const anpvs = (() => {
  const ACTIVATIONS = {linear: (x) => x, relu: tf.relu, sigmoid: tf.sigmoid, tanh: tf.tanh};

  const activated = (x, bias, name) => ACTIVATIONS[name](bias ? tf.add(x, bias) : x);

  const pooled = (pool) => ([x], weights, {pool_size, strides, padding}) =>
    pool(x, pool_size, strides, padding);

  // The matrix [channels, indices] that chooses channels; a number beyond them is a constant's.
  function choice(channels, indices) {
    const values = new Float32Array(channels * indices.length);
    indices.forEach((from, to) => {
      if (from < channels) values[from * indices.length + to] = 1;
    });
    return tf.tensor(values, [channels, indices.length]);
  }

  // The constants among chosen channels, and 0 elsewhere.
  function behind(channels, indices, {constants}) {
    const values = constants.dataSync();
    return tf.tensor1d(indices.map((from) => (from < channels ? 0 : values[from - channels])));
  }

  // What a layer computes, by its type and with its settings in Keras: (inputs, weights, settings).
  const LAYERS = {
    Conv2D: ([x], {kernel, bias}, {strides, padding, activation}) =>
      activated(tf.conv2d(x, kernel, strides, padding), bias, activation),
    DepthwiseConv2D: ([x], {kernel, bias}, {strides, padding, activation}) =>
      activated(tf.depthwiseConv2d(x, kernel, strides, padding), bias, activation),
    Dense: ([x], {kernel, bias}, {activation}) =>
      activated(tf.matMul(x, kernel), bias, activation),
    Activation: ([x], weights, {activation}) => ACTIVATIONS[activation](x),
    ReLU: ([x]) => tf.relu(x),
    MaxPooling2D: pooled(tf.maxPool),
    AveragePooling2D: pooled(tf.avgPool),
    GlobalAveragePooling2D: ([x], weights, {keepdims}) => tf.mean(x, [1, 2], keepdims),
    Flatten: ([x]) => tf.reshape(x, [x.shape[0], -1]),
    Add: (inputs) => inputs.reduce((sum, x) => tf.add(sum, x)),
    Affine: ([x], {scale, shift}) => {
      const scaled = scale ? tf.mul(x, scale) : x;
      return shift ? tf.add(scaled, shift) : scaled;
    },
    // As a product with zeros and ones: TensorFlow.js is slow at the gradient of `gather`.
    Select: ([x], weights, {indices}) => {
      const channels = x.shape.at(-1);
      weights.choice ??= tf.keep(choice(channels, indices));
      const chosen = tf.matMul(tf.reshape(x, [-1, channels]), weights.choice);
      const all = weights.constants ? tf.add(chosen, behind(channels, indices, weights)) : chosen;
      return tf.reshape(all, [...x.shape.slice(0, -1), indices.length]);
    },
  };

  function bytes(base64) {
    return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  }

  const size = (shape) => shape.reduce((product, length) => product * length, 1);

  // Images [batch, height, width, channels] in [0, 1] -> logits [batch, classes].
  class Network {
    // `described`: from serving/web_network.py.
    constructor(described) {
      const floats = new Float32Array(bytes(described.weights).buffer);
      let used = 0;
      this.shape = described.shape;
      this.steps = described.steps.map((step) => {
        const weights = {};
        for (const [name, shape] of step.weights) {
          const end = used + size(shape);
          weights[name] = tf.tensor(floats.slice(used, end), shape);
          used = end;
        }
        return {...step, weights};
      });
      this.latents = described.latents;
    }

    // The output of every step, the images first.
    values(images) {
      const values = [images];
      for (const {layer, inputs, weights, settings} of this.steps) {
        values.push(LAYERS[layer](inputs.map((i) => values[i]), weights, settings));
      }
      return values;
    }

    logits(images) {
      return tf.tidy(() => this.values(images).at(-1));
    }

    // Pixels, a Float32Array of whole images, as a tensor.
    images(pixels) {
      return tf.tensor(pixels, [pixels.length / size(this.shape), ...this.shape]);
    }

    // Logits and the gradient of the cross-entropy at images, as Float32Arrays. An example's
    // gradient does not depend on the others.
    evaluate(pixels, labels) {
      return tf.tidy(() => {
        let logits;
        const loss = (images) => {
          const found = this.logits(images);
          logits = found.dataSync();
          const classes = found.shape[1];
          const own = new Float32Array(logits.length);
          labels.forEach((label, example) => { own[example * classes + label] = 1; });
          return tf.neg(tf.sum(tf.mul(tf.logSoftmax(found), tf.tensor(own, found.shape))));
        };
        const gradient = tf.grad(loss)(this.images(pixels)).dataSync();
        return {logits, gradient};
      });
    }

    // The features of every latent layer of one image: [{shape: of the features that are left,
    // values}], in the order of `latents`.
    features(pixels) {
      return tf.tidy(() => {
        const values = this.values(this.images(pixels));
        return this.latents.map(({value, scale}) => {
          const scaled = tf.mul(values[value], tf.tensor1d(scale));
          return {shape: scaled.shape.slice(1), values: scaled.dataSync()};
        });
      });
    }
  }

  // ---- The attack: l-infinity and l2 balls, in float32 as attacks/threat_model.py has them ----

  const rounded = Math.fround;
  const clipped = (value, low, high) => Math.min(Math.max(value, low), high);

  function length(values, norm) {
    if (norm === "linf") return values.reduce((most, one) => Math.max(most, Math.abs(one)), 0);
    return Math.sqrt(values.reduce((sum, one) => sum + one * one, 0));
  }

  // The direction of length 1 in which the loss grows fastest; 0 for a zero gradient.
  function steepest(gradient, norm) {
    if (norm === "linf") return gradient.map(Math.sign);
    // By the largest entry first: squares of small gradients would vanish.
    const most = length(gradient, "linf") || 1;
    const scaled = gradient.map((one) => one / most);
    const whole = length(scaled, norm) || 1;
    return scaled.map((one) => one / whole);
  }

  // Moves a candidate into the ball around its image, then into [0, 1].
  function restrict(image, candidate, epsilon, norm) {
    const radius = rounded(epsilon);
    const moved = candidate.map((one, i) => one - image[i]);
    const factor = norm === "linf" ? 1 : Math.min(1, radius / (length(moved, norm) || radius || 1));
    return image.map((one, i) => {
      const inside = norm === "linf" ? clipped(moved[i], -radius, radius) : moved[i] * factor;
      return clipped(rounded(one + rounded(inside)), 0, 1);
    });
  }

  // Throws unless an attacked image lies in the ball and in [0, 1], rounding allowed for.
  function assertAllowed(image, attacked, epsilon, norm) {
    const moved = length(Float64Array.from(attacked, (one, i) => one - image[i]), norm);
    if (!(moved <= epsilon * (1 + 1e-5) + 1e-6)) {
      throw new Error(`the attack left the ball: ${moved} > ${epsilon}`);
    }
    if (!attacked.every((one) => one >= 0 && one <= 1)) {
      throw new Error("the attack left the range of pixels, 0 to 1");
    }
  }

  // Applies a function to each whole image of one or several Float32Arrays.
  function eachImage(length, arrays, change) {
    const result = new Float32Array(arrays[0].length);
    for (let start = 0; start < result.length; start += length) {
      result.set(change(...arrays.map((one) => one.subarray(start, start + length))), start);
    }
    return result;
  }

  // Projected gradient descent from the images themselves: climbs the cross-entropy of `labels`.
  // Yields {step, pixels, logits} before the first step and after each.
  function* pgd(network, images, labels, {epsilon, stepSize, steps, norm}) {
    const pixelsOfOne = size(network.shape);
    const stride = rounded(stepSize);
    let pixels = Float32Array.from(images);
    for (let step = 0; ; step++) {
      const {logits, gradient} = network.evaluate(pixels, labels);
      yield {step, pixels, logits};
      if (step === steps) return;
      pixels = eachImage(pixelsOfOne, [images, pixels, gradient], (image, current, slope) => {
        const direction = steepest(slope, norm);
        const moved = current.map((one, i) => one + rounded(stride * direction[i]));
        const next = restrict(image, moved, epsilon, norm);
        assertAllowed(image, next, epsilon, norm);
        return next;
      });
    }
  }

  function softmax(logits) {
    const most = Math.max(...logits);
    const powers = Array.from(logits, (one) => Math.exp(one - most));
    const sum = powers.reduce((left, right) => left + right);
    return powers.map((one) => one / sum);
  }

  return {Network, bytes, pgd, softmax};
})();
