"""Mean and standard deviation of ImageNet's red, green and blue, from 0 to 1: the values that all recipes use."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
