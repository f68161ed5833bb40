"""Train an own network with an own loss on digits, watch it, and classify a picture."""

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn

import dp_ray


class Net(nn.Sequential):
    def __init__(self, num_classes: int, channels: int, image_size: int) -> None:
        pixels = channels * image_size**2
        super().__init__(nn.Flatten(), nn.Linear(pixels, 64), nn.ReLU(), nn.Linear(64, num_classes))


class Smoothed(dp_ray.Classification):
    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, labels, reduction="none", label_smoothing=0.1)


class Show(dp_ray.Callback):
    def on_evaluation(self, public: dp_ray.PublicValues, private: dp_ray.PrivateValues) -> None:
        print(f"step {public.step}: accuracy {public.accuracy:.3f} at ε = {public.epsilon:.2f}")


digits = load_digits()
images, labels = (digits.images * 15).astype(np.uint8), digits.target
data = (images[:1500], labels[:1500]), (images[1500:], labels[1500:])
config = dp_ray.load_config("first.yaml")
run = dp_ray.train(config, model=Net, data=data, objective=Smoothed, callbacks=[Show()])
network, preprocess = dp_ray.load_model(run)
print(network(preprocess(Image.fromarray(images[-1]))).argmax())
